"""Labelled sources joined for training: the first with its classes, then images of others, matched to them by name.

A test source beside a training source is `join_test` in `listing.py`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ssl_ft.data.listing import UNLABELLED, Source
from ssl_ft.errors import UserError


def join_labelled(first: Source, others: Sequence[Source], *, is_union: bool) -> Source:
    """`first`, with its indices and class numbers as they were, followed by all images of the others.

    Splits are left out: which of the images hold which role is the caller's business.

    Args:
        first: labelled.
        others: labelled; an image's class is that of the same name in `first`.
        is_union: let the others bring further classes, numbered after those of `first`; else they are refused.

    Raises:
        UserError: classes of others that `first` lacks, with `is_union=False`.
    """
    classes = list(first.class_names)
    for other in others:
        strangers = [name for name in _present(other) if name not in classes]
        if strangers and not is_union:
            shown = ", ".join(map(repr, strangers[:10])) + (", ..." if len(strangers) > 10 else "")
            raise UserError(
                f"also={other.location} has {len(strangers)} classes that {first.location} lacks ({shown}); take their "
                "images out, give classes that are the same the same name, or set also_classes=union to learn them "
                "beside its own"
            )
        classes += strangers
    parts = (first, *others)
    ends = list(accumulate(len(part) for part in parts))

    def place(index: int) -> tuple[Source, int]:
        number = bisect_right(ends, index)
        return parts[number], index - (ends[number] - len(parts[number]))

    def read(index: int) -> object:
        part, own = place(index)
        return part.read(own)

    def evidence(index: int) -> bytes:
        part, own = place(index)
        return part.evidence(own)

    return Source(
        kind=first.kind,
        location=" + ".join(part.location for part in parts),
        names=[*first.names, *(f"also {k}:{name}" for k, part in enumerate(others, 1) for name in part.names)],
        read=read,  # type: ignore[arg-type]
        evidence=evidence,
        labels=np.concatenate([_renumbered(part, classes) for part in parts]),
        class_names=tuple(classes),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _present(source: Source) -> list[str]:
    """Classes that at least one image has."""
    assert source.labels is not None, "labelled sources are joined"
    return [source.class_names[label] for label in np.unique(source.labels).tolist() if label >= 0]


def _renumbered(source: Source, classes: Sequence[str]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    assert source.labels is not None, "labelled sources are joined"
    # A class that no image has may be unknown to the others; no label points at its entry.
    known = {name: number for number, name in enumerate(classes)}
    table = np.array([*(known.get(name, UNLABELLED) for name in source.class_names), UNLABELLED], np.int64)
    numbers: np.ndarray[tuple[int], np.dtype[np.int64]] = table[source.labels]  # the last entry serves -1
    return numbers
