"""A shift as a whole: statistics of images, Holm's correction, calibration over splits, grades and advice."""

import numpy as np
import pytest

from ssl_ft.data.source import open_source
from ssl_ft.evaluate.features import pixel_features
from ssl_ft.evaluate.shift import (
    LEVEL,
    Shift,
    advise,
    differences,
    holm,
    image_statistics,
    measure,
    prepare,
    statistic_names,
)


def test_statistics_are_those_of_the_formulas():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 6), dtype=np.uint8)
    found, names = image_statistics(pixels), statistic_names(2)
    assert found.shape == (3, len(names))
    for image, row in zip(pixels / 255, found, strict=True):
        value = dict(zip(names, row, strict=True))
        grey = image.mean(0)
        edges = [
            grey[i - 1, j] + grey[i + 1, j] + grey[i, j - 1] + grey[i, j + 1] - 4 * grey[i, j]
            for i in range(1, 4)
            for j in range(1, 5)
        ]
        assert value["mean_channel_2"] == pytest.approx(image[1].mean())
        assert value["deviation_channel_1"] == pytest.approx(image[0].std())
        assert value["brightness"] == pytest.approx(grey.mean())
        assert value["contrast"] == pytest.approx(grey.std())
        assert value["sharpness"] == pytest.approx(np.sqrt(np.mean(np.square(edges))))


def test_intervals_of_differences_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        a, b = generator.normal(0, 1, (40, 1)), generator.normal(0.5, 3, (90, 1))
        (row,) = differences(a, b, ["x"])
        assert row.difference == pytest.approx(row.target - row.pool)
        hits.append(row.low <= 0.5 <= row.high)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_holm():
    # By hand: 0.01 · 3, 0.02 · 2, and no smaller than the one before.
    assert holm([0.02, 0.01, 0.9]) == pytest.approx([0.04, 0.03, 0.9])
    assert holm([0.03, 0.02, 0.025]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.6, 0.6]) == [1.0, 1.0]


def spaces_of(generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Two kinds of features, the second made of the first."""
    features = np.exp(generator.normal(size=(count, 6)))
    return {"encoder": features, "pixels": features[:, :3] ** 2}


@pytest.mark.slow
def test_false_alarms_of_all_tests_together():
    """Over 100 splits of one set the corrected verdict alarms in 5 % at most."""
    generator = np.random.default_rng(2)
    prepared = prepare(spaces_of(generator, 80))
    alarms = []
    for split in range(100):
        is_target = np.zeros(80, bool)
        is_target[generator.permutation(80)[:40]] = True
        shift = measure(prepared, is_target, num_permutations=199, seed=split)
        assert shift.is_shifted == (min(test.adjusted for test in shift.tests) <= LEVEL)
        assert (shift.grade == "none") != shift.is_shifted
        alarms.append(shift.is_shifted)
    assert np.mean(alarms) <= 0.05


def test_only_the_features_that_show_it_are_named():
    generator = np.random.default_rng(3)
    is_target = np.arange(200) >= 100
    plain = generator.normal(size=(200, 4))
    shift = measure(
        prepare({"encoder": plain, "pixels": plain + is_target[:, None]}), is_target, num_permutations=199, seed=0
    )
    assert shift.seen_by == ("pixels",)
    assert shift.outcome("pixels", "classifier").value > shift.outcome("encoder", "classifier").value
    assert "not as the encoder sees them" in advise(shift)


def test_the_effect_does_not_grow_with_the_number_of_images():
    found = []
    for count in (200, 1200):
        generator = np.random.default_rng(4)
        is_target = np.arange(count) >= count // 2
        features = generator.normal(size=(count, 8)) + 0.5 * is_target[:, None]
        found.append(measure(prepare({"encoder": features}), is_target, num_permutations=99, seed=0).effect)
    # Means 0.5 apart in 8 of 8 directions: 8 · 0.25 over a total variance of 8 · (1 + 0.0625).
    assert found == pytest.approx([2 / 8.5, 2 / 8.5], rel=0.3)
    assert found[1] == pytest.approx(2 / 8.5, rel=0.15)


@pytest.mark.parametrize(
    ("grade", "seen", "words"),
    [
        ("none", (), "can be used as it is, and a linear probe"),
        ("slight", ("encoder",), "statistics of its batch norms"),
        ("clear", ("encoder", "pixels"), "Do not stop at a linear probe"),
        ("far", ("encoder",), "Expect little of the frozen encoder"),
    ],
)
def test_advice(grade, seen, words):
    assert words in advise(Shift((), bool(seen), 0.0, grade, seen))


def test_digits_against_themselves_and_their_negative():
    source = open_source("digits")
    images = np.stack([np.asarray(source.read(i)) for i in range(400)])
    pixels = images.reshape(len(images), 1, *images.shape[1:3]).astype(np.uint8)
    is_target = np.random.default_rng(0).permutation(400) < 200
    negative = np.where(is_target[:, None, None, None], 255 - pixels, pixels)
    for both, grade in ((pixels, "none"), (negative, "far")):
        spaces = {"pixels": pixel_features(both), "statistics": image_statistics(both)}
        assert measure(prepare(spaces), is_target, num_permutations=199, seed=0).grade == grade
