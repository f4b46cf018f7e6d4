"""Metrics against scikit-learn, intervals against closed forms and simulated coverage."""

import numpy as np
import pytest
from sklearn import metrics as reference

from ssl_ft.evaluate.metrics import (
    Estimate,
    Labels,
    accuracy,
    balanced_accuracy,
    class_scores,
    confusion_matrix,
    estimate,
    expected_calibration_error,
    macro_f1,
    paired_difference,
)


def _case(seed: int, *, num_images: int = 60, num_classes: int = 7, num_draws: int = 1) -> tuple[Labels, Labels]:
    """Skewed labels and predictions: some classes occur only among labels, only among predictions, or nowhere."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(num_classes, 0.4), size=2)
    labels = generator.choice(num_classes, p=shares[0], size=num_images)
    guesses = generator.choice(num_classes, p=shares[1], size=(num_draws, num_images))
    predictions = np.where(generator.random((num_draws, num_images)) < 0.5, labels, guesses)
    return labels, predictions


@pytest.mark.parametrize("seed", range(10))
def test_point_metrics_equal_scikit_learn(seed: int) -> None:
    labels, (predictions,) = _case(seed)

    table = confusion_matrix(labels, predictions, 7)
    np.testing.assert_array_equal(table, reference.confusion_matrix(labels, predictions, labels=range(7)))
    assert accuracy(labels, predictions) == pytest.approx(reference.accuracy_score(labels, predictions), abs=1e-12)
    recalls = reference.recall_score(labels, predictions, labels=np.unique(labels), average=None, zero_division=0)
    assert balanced_accuracy(labels, predictions, 7) == pytest.approx(recalls.mean(), abs=1e-12)
    f1 = reference.f1_score(labels, predictions, average="macro", zero_division=0)
    assert macro_f1(labels, predictions, 7) == pytest.approx(f1, abs=1e-12)

    rows = class_scores(labels, predictions, class_names=list("abcdefg"))
    expected = reference.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=0)
    np.testing.assert_allclose([[row.precision, row.recall, row.f1, row.n] for row in rows], np.transpose(expected))
    assert [row.name for row in rows] == list("abcdefg")


def test_calibration_error_by_hand() -> None:
    # Bins of width 0.25, upper edge included: {0.0, 0.25}, {0.3}, {0.75}, {0.76, 1.0}.
    confidence = np.array([0.0, 0.25, 0.3, 0.75, 0.76, 1.0])
    correct = np.array([False, True, True, False, True, True])
    gaps = [abs(0.25 - 1), abs(0.3 - 1), abs(0.75 - 0), abs(1.76 - 2)]
    assert expected_calibration_error(confidence, correct, bins=4) == pytest.approx(sum(gaps) / 6)


@pytest.mark.parametrize("num_draws", [1, 3])
def test_estimates_average_the_point_metrics_over_draws(num_draws: int) -> None:
    labels, predictions = _case(1, num_draws=num_draws)
    confidences = np.random.default_rng(0).random(predictions.shape)

    found = {e.name: e for e in estimate(labels, predictions, num_classes=7, seed=0, confidences=confidences)}

    expected = {
        "accuracy": [accuracy(labels, p) for p in predictions],
        "balanced_accuracy": [balanced_accuracy(labels, p, 7) for p in predictions],
        "macro_f1": [macro_f1(labels, p, 7) for p in predictions],
        "expected_calibration_error": [
            expected_calibration_error(c, p == labels) for c, p in zip(confidences, predictions, strict=True)
        ],
    }
    assert list(found) == list(expected)
    for name, per_draw in expected.items():
        assert found[name].value == pytest.approx(np.mean(per_draw), abs=1e-12)
        assert 0.0 <= found[name].low < found[name].value < found[name].high <= 1.0
        assert found[name].n == 60


@pytest.mark.parametrize("seed", range(3))
def test_intervals_equal_a_bootstrap_written_out(seed: int) -> None:
    """Reference: every resample built as arrays of images, each metric computed on it by scikit-learn."""
    labels, predictions = _case(seed, num_images=40, num_classes=3, num_draws=3)
    resampled = []
    for number in range(50):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
        images = generator.integers(40, size=40)
        draws = generator.integers(3, size=3)
        pairs = [(labels[images], predictions[draw, images]) for draw in draws]
        per_draw = [
            [
                np.mean(y == p),
                reference.recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0),
                reference.f1_score(y, p, average="macro", zero_division=0),
            ]
            for y, p in pairs
        ]
        resampled.append(np.mean(per_draw, axis=0))

    found = estimate(labels, predictions, num_classes=3, seed=seed, num_resamples=50, level=0.8)

    for row, expected in zip(found, np.transpose(resampled), strict=True):
        low, high = np.quantile(expected - expected.mean() + row.value, [0.1, 0.9])
        assert (row.low, row.high) == pytest.approx((low, min(high, 1.0)), abs=1e-12)


def test_perfect_predictions_have_no_uncertainty() -> None:
    labels = np.repeat([0, 1, 2], 20)
    predictions = np.tile(labels, (4, 1))
    rows = estimate(labels, predictions, num_classes=3, seed=0, confidences=np.ones(predictions.shape))
    assert [(row.value, row.low, row.high) for row in rows] == [(1, 1, 1)] * 3 + [(0, 0, 0)]


@pytest.mark.parametrize(("share", "num_images"), [(0.7, 500), (0.95, 2000)])
def test_width_of_one_draw_is_binomial(share: float, num_images: int) -> None:
    labels = np.arange(num_images) % 2
    is_right = np.arange(num_images) < share * num_images
    (row, *_) = estimate(labels, np.where(is_right, labels, 1 - labels)[None], num_classes=2, seed=0)
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * np.sqrt(share * (1 - share) / num_images), rel=0.15)


def test_draws_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(2000, dtype=np.int64)
    per_draw = np.linspace(0.5, 0.9, 10)
    predictions = (generator.random((10, 2000)) > per_draw[:, None]).astype(np.int64)
    (row, *_) = estimate(labels, predictions, num_classes=2, seed=0)
    # The mean over ten draws with this spread; the 2000 images add little to it.
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * per_draw.std() / np.sqrt(10), rel=0.15)


@pytest.mark.parametrize(("num_draws", "draw_spread"), [(1, 0.0), (12, 0.5)])
def test_intervals_cover_the_truth_as_often_as_they_say(num_draws: int, draw_spread: float) -> None:
    """200 simulated studies: image difficulties and draw qualities are both random, as in few-label probing."""
    generator = np.random.default_rng(7)
    many = generator.standard_normal(400_000)
    truth = np.mean(1 / (1 + np.exp(-(0.8 + many + draw_spread * generator.permutation(many)))))
    num_covered = 0
    for study in range(200):
        logits = 0.8 + generator.standard_normal(150) + draw_spread * generator.standard_normal((num_draws, 1))
        predictions = (generator.random((num_draws, 150)) > 1 / (1 + np.exp(-logits))).astype(np.int64)
        (row, *_) = estimate(np.zeros(150, np.int64), predictions, num_classes=2, seed=study, num_resamples=200)
        num_covered += row.low <= truth <= row.high
    assert 180 <= num_covered <= 198


def test_interval_holds_the_value_where_resamples_are_biased() -> None:
    """Few images per class: resampled macro-F1 is lower, and calibration error higher, than the data's own."""
    generator = np.random.default_rng(0)
    labels = np.arange(1000) % 200
    predictions = np.where(generator.random((20, 1000)) < 0.9, labels, generator.integers(200, size=(20, 1000)))
    for row in estimate(labels, predictions, num_classes=200, seed=0, confidences=np.full((20, 1000), 0.9)):
        assert row.low < row.value < row.high


def test_paired_difference_cancels_what_both_models_share() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(1000, dtype=np.int64)
    shared = generator.random((5, 1000)) < 0.6
    better = shared | (generator.random((5, 1000)) < 0.05)

    same = paired_difference(labels, 1 - shared, 1 - shared, seed=0)
    found = paired_difference(labels, 1 - better, 1 - shared, seed=0)
    reverse = paired_difference(labels, 1 - shared, 1 - better, seed=0)

    assert same == Estimate(name="accuracy_difference", value=0.0, low=0.0, high=0.0, n=1000)
    assert found.value == pytest.approx(better.mean() - shared.mean(), abs=1e-12)
    assert 0 < found.low < found.value < found.high
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    separate = estimate(labels, (1 - shared).astype(np.int64), num_classes=2, seed=0)[0]
    assert found.high - found.low < 0.6 * (separate.high - separate.low)


def test_paired_difference_uses_the_resamples_of_the_estimates() -> None:
    """Against a model that is never right the difference is the accuracy itself, interval included."""
    labels, predictions = _case(2, num_draws=4)
    difference = paired_difference(labels, predictions, np.full_like(predictions, 7), seed=3)
    alone = estimate(labels, predictions, num_classes=7, seed=3)[0]
    assert (difference.value, difference.low, difference.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_same_seed_same_numbers_at_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = _case(0, num_draws=3)
    whole = estimate(labels, predictions, num_classes=7, seed=5, num_resamples=40)
    monkeypatch.setattr("ssl_ft.evaluate.metrics._BLOCK_WEIGHTS", 7 * 60)
    assert estimate(labels, predictions, num_classes=7, seed=5, num_resamples=40) == whole
    assert estimate(labels, predictions, num_classes=7, seed=6, num_resamples=40) != whole


def test_classes_out_of_range_are_an_error_of_ours() -> None:
    with pytest.raises(AssertionError, match="num_classes"):
        confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
