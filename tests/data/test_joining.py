"""Labelled sources joined for training: what comes from where, classes by name, and strangers refused or learnt."""

from dataclasses import replace

import numpy as np
import pytest

from ssl_ft.data.joining import join_labelled
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from tests.pools import noise_images, source_of


def labelled(location: str, labels: list[int], classes: tuple[str, ...], *, seed: int) -> Source:
    images = list(noise_images(len(labels), seed=seed))
    return replace(
        source_of(images),
        location=location,
        labels=np.array(labels),
        class_names=classes,
        notes=(f"note of {location}",),
    )


MAIN = labelled("main", [0, 1, -1, 1], ("cat", "dog"), seed=0)
SAME = labelled("same", [1, 0, 2], ("dog", "cat", "emu"), seed=1).subset(np.array([0, 1]))  # no emu is left
MORE = labelled("more", [0, 1, 2, -1], ("ant", "dog", "bee"), seed=2)


def test_images_labels_and_evidence_come_from_their_own_source() -> None:
    joined = join_labelled(MAIN, [SAME, MORE], is_union=True)
    assert joined.class_names == ("cat", "dog", "ant", "bee")
    assert joined.labels.tolist() == [0, 1, -1, 1, 0, 1, 2, 1, 3, -1]
    assert joined.labels.dtype == np.int64
    parts = [(MAIN, 4), (SAME, 2), (MORE, 4)]
    rows = [(part, own) for part, count in parts for own in range(count)]
    for index, (part, own) in enumerate(rows):
        assert np.array_equal(joined.read(index), part.read(own))
        assert joined.evidence(index) == part.evidence(own)
    assert joined.names[:6] == [*MAIN.names, "also 1:image 0", "also 1:image 1"]
    assert joined.location == "main + same + more"
    assert joined.notes == ("note of main", "note of same", "note of more")
    assert joined.splits is None


def test_what_the_first_had_keeps_its_numbers() -> None:
    """Budgets and test parts of the first are drawn by index and class number."""
    joined = join_labelled(MAIN, [MORE], is_union=True)
    assert np.array_equal(joined.labels[: len(MAIN)], MAIN.labels)
    assert joined.class_names[: len(MAIN.class_names)] == MAIN.class_names


def test_the_same_classes_need_no_leave_whatever_their_order() -> None:
    assert join_labelled(MAIN, [SAME], is_union=False).class_names == MAIN.class_names


def test_strangers_are_refused_by_name() -> None:
    with pytest.raises(
        UserError, match=r"also=more has 2 classes that main lacks \('ant', 'bee'\).*also_classes=union"
    ):
        join_labelled(MAIN, [SAME, MORE], is_union=False)
