"""Labels and computing saved: slow versions, closed forms, and what happens beyond the budgets measured."""

import math

import numpy as np
import pytest

from ssl_ft.evaluate.comparison import Resampled, Scored, resample
from ssl_ft.evaluate.efficiency import (
    Bound,
    Reach,
    break_evens,
    computing,
    isotonic,
    labels_to_catch_up,
    labels_to_reach,
    reaches,
)

LABELS = np.array([20, 100, 500])


def pool_adjacent(values: list[float]) -> list[float]:
    """Isotonic regression by merging neighbours that fall, written out."""
    blocks = [[v, 1] for v in values]
    i = 0
    while i + 1 < len(blocks):
        if blocks[i][0] > blocks[i + 1][0]:
            (a, n), (b, m) = blocks[i], blocks[i + 1]
            blocks[i : i + 2] = [[(a * n + b * m) / (n + m), n + m]]
            i = max(0, i - 1)
        else:
            i += 1
    return [v for v, n in blocks for _ in range(n)]


def test_isotonic_equals_pooling_of_neighbours():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 6):
        curves = rng.normal(size=(20, size))
        np.testing.assert_allclose(isotonic(curves), [pool_adjacent(list(c)) for c in curves], atol=1e-12)
    rising = np.sort(rng.normal(size=(5, 4)))
    np.testing.assert_allclose(isotonic(rising), rising)


def test_labels_to_reach_interpolates_on_log_labels():
    curves = np.tile([0.2, 0.4, 0.8], (6, 1))
    targets = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9])
    expected = [-math.inf, 20, math.sqrt(20 * 100), 100, math.sqrt(100 * 500), math.inf]
    np.testing.assert_allclose(labels_to_reach(LABELS, curves, targets), expected)


def test_a_flat_stretch_is_reached_at_its_beginning():
    assert labels_to_reach(LABELS, np.array([[0.2, 0.5, 0.5]]), np.array([0.5]))[0] == pytest.approx(100)


def test_labels_to_catch_up_is_the_last_crossing():
    leads = np.array([[0.2, -0.2, -0.3], [-0.1, -0.1, -0.1], [0.1, 0.1, 0.1], [0.1, -0.1, 0.1], [-0.1, 0.3, -0.1]])
    expected = [math.sqrt(20 * 100), -math.inf, math.inf, math.inf, math.exp(math.log(100) + 0.75 * math.log(5))]
    np.testing.assert_allclose(labels_to_catch_up(LABELS, leads), expected)


def test_vectors_equal_one_at_a_time():
    rng = np.random.default_rng(1)
    curves, targets = rng.random((30, 3)), rng.random(30)
    for number in range(30):
        alone = labels_to_reach(LABELS, curves[[number]], targets[[number]])
        np.testing.assert_array_equal(labels_to_reach(LABELS, curves, targets)[[number]], alone)


def curves_of(accuracies: dict[str, list[float]], *, images: int = 4000, draws: int = 5, seed: int = 0) -> Resampled:
    rng = np.random.default_rng(seed)
    labels = np.zeros(images, np.int64)
    scored = [
        Scored(model, budget, 10 * budget, (rng.random((draws, images)) > chance).astype(np.int64))
        for model, row in accuracies.items()
        for budget, chance in zip((2, 10, 50), row, strict=True)
    ]
    return resample(labels, scored, seed=seed, num_resamples=400)


def test_reaches_hold_the_truth_and_say_where_nothing_is_known():
    resampled = curves_of({"scratch": [0.3, 0.5, 0.7], "probe": [0.4, 0.6, 0.8]})
    found = {each.budget: each for each in reaches(resampled, baselines=["scratch", "scratch"])}
    assert (found[2].model, found[2].baseline, found[2].num_labels) == ("probe", "scratch", 20)
    # Half way between 2 and 10 labels a class on the logarithm.
    assert found[2].low.labels <= math.sqrt(20 * 100) <= found[2].high.labels
    assert found[2].low.side == found[2].high.side == "at"
    assert found[50].needed == found[50].low == Bound(500.0, "above")
    worse = curves_of({"scratch": [0.3, 0.5, 0.7], "probe": [0.1, 0.6, 0.8]})
    assert reaches(worse, baselines=["scratch", "scratch"])[0].needed == Bound(20.0, "below")


@pytest.mark.slow
def test_reaches_cover_the_truth():
    rounds, held = 200, 0
    for seed in range(rounds):
        resampled = curves_of({"scratch": [0.3, 0.5, 0.7], "probe": [0.4, 0.6, 0.8]}, images=300, seed=seed)
        found = reaches(resampled, baselines=["scratch", "scratch"])[0]
        held += found.low.labels <= math.sqrt(20 * 100) <= found.high.labels
    assert held / rounds >= 0.93


def test_break_even_is_where_the_curves_cross():
    resampled = curves_of({"scratch": [0.3, 0.5, 0.9], "probe": [0.5, 0.6, 0.7], "full": [0.5, 0.7, 0.95]})
    probe, full = break_evens(resampled, baselines=["scratch"] * 3)
    crossing = math.exp(math.log(100) + 0.1 / 0.3 * math.log(5))
    assert probe.low.labels <= crossing <= probe.high.labels
    assert full.labels == Bound(500.0, "above"), "still ahead with the most labels"


def test_computing_pays_after_enough_classifiers():
    reach = Reach("probe", "scratch", 2, 20, Bound(60.0, "at"), Bound(50.0, "at"), Bound(70.0, "at"))
    paid = computing(reach, pretrain_seconds=100.0, seconds=5.0, baseline_seconds=30.0)
    assert paid.classifiers == 4, "100 s over 25 s saved by each"
    assert paid.seconds_per_label == pytest.approx((100 + 5 - 30) / 40)
    slower = computing(reach, pretrain_seconds=100.0, seconds=40.0, baseline_seconds=30.0)
    assert slower.classifiers is None
    unknown = Reach("probe", "scratch", 50, 500, *[Bound(500.0, "above")] * 3)
    assert computing(unknown, pretrain_seconds=1.0, seconds=1.0, baseline_seconds=1.0).seconds_per_label is None
