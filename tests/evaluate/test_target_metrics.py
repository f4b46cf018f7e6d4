"""Multi-label and regression scores: slow references, scikit-learn, scipy, bootstraps written out, missing values."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.evaluate.target_metrics import (
    TargetEstimate,
    estimate_labels,
    estimate_numbers,
    mean_average_precision,
    mean_r2,
    ranking_scores,
    regression_scores,
)
from tests.references.target_metrics import auroc_by_pairs, average_precision_by_loops, numbers_by_loops

NAN = np.nan


def labels_case(seed: int, *, count: int = 60, labels: int = 4, draws: int = 1, holes: float = 0.15):
    """Targets with missing values, and probabilities that know something, with ties."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, labels)) < np.linspace(0.2, 0.6, labels)).astype(np.float32)
    logits = 1.5 * (targets - 0.5) + generator.standard_normal((draws, count, labels))
    targets[generator.random(targets.shape) < holes] = NAN
    return targets, np.round(1 / (1 + np.exp(-logits)), 1)


def numbers_case(seed: int, *, count: int = 60, targets: int = 2, draws: int = 1, holes: float = 0.15):
    generator = np.random.default_rng(seed)
    truth = np.round(100 + 10 * generator.standard_normal((count, targets)), 0).astype(np.float32)
    predictions = np.round(truth + 8 * generator.standard_normal((draws, count, targets)), 0)
    truth[generator.random(truth.shape) < holes] = NAN
    return truth, predictions


def by_name(rows: list[TargetEstimate]) -> dict[tuple[str | None, str], Estimate]:
    return {(row.target, row.estimate.name): row.estimate for row in rows}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [2, 5, 30])
def test_rankings_equal_slow_ones_under_weights_that_repeat_images(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.append([0, 1], generator.integers(0, 2, count - 2)).astype(float)
    scores = np.round(generator.random(count), 1)
    weights = generator.integers(0, 4, (count, 3)).astype(float)
    weights[:2] = 1  # a positive and a negative are always there
    found = ranking_scores(truth, scores, weights)
    for column in range(3):
        repeated = np.repeat(np.arange(count), weights[:, column].astype(int))
        t, s = truth[repeated].astype(int).tolist(), scores[repeated].tolist()
        assert found[0, column] == pytest.approx(average_precision_by_loops(t, s), abs=1e-12)
        assert found[1, column] == pytest.approx(auroc_by_pairs(t, s), abs=1e-12)
        assert found[0, column] == pytest.approx(sklearn_metrics.average_precision_score(t, s), abs=1e-12)
        assert found[1, column] == pytest.approx(sklearn_metrics.roc_auc_score(t, s), abs=1e-12)


def test_rankings_without_positives_or_negatives() -> None:
    ones = np.ones((3, 1))
    scores = np.array([0.1, 0.2, 0.3])
    assert np.isnan(ranking_scores(np.zeros(3), scores, ones)).all()
    found = ranking_scores(np.ones(3), scores, ones)
    assert found[0, 0] == 1
    assert np.isnan(found[1, 0])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [3, 8, 40])
def test_numbers_equal_slow_ones_under_weights_that_repeat_images(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    truth, predictions = (np.round(generator.standard_normal(count), 1) for _ in range(2))
    truth[:2], predictions[:2] = (3, 4), (1, 2)
    weights = generator.integers(0, 4, (count, 3)).astype(float)
    weights[:2] = 1
    found = regression_scores(truth, predictions, weights)
    for column in range(3):
        repeated = np.repeat(np.arange(count), weights[:, column].astype(int))
        t, p = truth[repeated], predictions[repeated]
        assert found[:, column] == pytest.approx(numbers_by_loops(t.tolist(), p.tolist()), abs=1e-10)
        assert found[2, column] == pytest.approx(sklearn_metrics.r2_score(t, p), abs=1e-10)
        assert found[3, column] == pytest.approx(stats.spearmanr(t, p).statistic, abs=1e-10)


def test_numbers_that_do_not_vary() -> None:
    ones = np.ones((4, 1))
    varied = np.array([1.0, 2.0, 3.0, 4.0])
    mae, rmse, r2, rank = regression_scores(np.full(4, 0.1), varied, ones)[:, 0]
    assert (mae, np.isnan(r2), np.isnan(rank)) == (pytest.approx(2.4), True, True)
    assert rmse > mae
    assert regression_scores(varied, np.full(4, 2.5), ones)[2:, 0].tolist() == [0, 0]
    # Far from zero the digits of R² must not drown.
    assert regression_scores(varied + 1e9, varied + 1e9 + 0.5, ones)[2, 0] == pytest.approx(1 - 1 / 5)


def test_point_scores_leave_missing_values_out() -> None:
    targets, probabilities = labels_case(0)
    per_label = []
    for k in range(4):
        known = ~np.isnan(targets[:, k])
        per_label.append(sklearn_metrics.average_precision_score(targets[known, k], probabilities[0, known, k]))
    assert mean_average_precision(targets, probabilities[0]) == pytest.approx(np.mean(per_label))
    spoilt = np.where(np.isnan(targets), 1.0, probabilities[0])
    assert mean_average_precision(targets, spoilt) == pytest.approx(np.mean(per_label))
    targets[:, 2] = NAN
    assert mean_average_precision(targets, probabilities[0]) == pytest.approx(np.mean(np.delete(per_label, 2)))
    truth, predictions = numbers_case(0, holes=0)
    assert mean_r2(truth, predictions[0]) == pytest.approx(sklearn_metrics.r2_score(truth, predictions[0]))


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_scikit_learns(seed: int) -> None:
    targets, probabilities = labels_case(seed, holes=0)
    rows = by_name(estimate_labels(targets, probabilities, names="abcd", seed=0, num_resamples=20))
    predicted = probabilities[0] >= 0.5
    for average in ("micro", "macro"):
        expected = sklearn_metrics.f1_score(targets, predicted, average=average)
        assert rows[None, f"{average}_f1"].value == pytest.approx(expected)


@pytest.mark.parametrize(("estimate", "case"), [(estimate_labels, labels_case), (estimate_numbers, numbers_case)])
@pytest.mark.parametrize("draws", [1, 3])
def test_intervals_equal_a_bootstrap_written_out(estimate, case, draws: int) -> None:
    """Every resample built as arrays of images, every metric computed on it by the slow references."""
    targets, outputs = case(1, count=40, draws=draws)
    names = "abcd"[: targets.shape[1]]
    rows = by_name(estimate(targets, outputs, names=names, seed=5, num_resamples=30, level=0.8))
    resampled: dict[tuple[str | None, str], list[float]] = {}
    for number in range(30):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([5, number])))
        images, picked = generator.integers(40, size=40), generator.integers(draws, size=draws)
        every = [_slowly(targets[images], outputs[draw, images], names) for draw in picked]
        for key in every[0]:
            resampled.setdefault(key, []).append(float(np.mean([scores[key] for scores in every])))
    assert rows.keys() == resampled.keys()
    for key, values in resampled.items():
        row, found = rows[key], np.array(values)
        assert row.value == pytest.approx(np.mean([_slowly(targets, out, names)[key] for out in outputs]), abs=1e-10)
        low, high = np.quantile(found - found.mean() + row.value, [0.1, 0.9])
        highest = np.inf if key[1] in ("mae", "rmse") else 1.0
        assert (row.low, row.high) == pytest.approx((low, min(high, highest)), abs=1e-10)


def _slowly(targets: np.ndarray, outputs: np.ndarray, names: str) -> dict[tuple[str | None, str], float]:
    found: dict[tuple[str | None, str], float] = {}
    is_labels = set(np.unique(targets[~np.isnan(targets)])) <= {0.0, 1.0}
    hits = predicted = positives = 0
    f1s = []
    for k, name in enumerate(names):
        known = ~np.isnan(targets[:, k])
        truth, out = targets[known, k].astype(float).tolist(), outputs[known, k].tolist()
        if not is_labels:
            for metric, value in zip(("mae", "rmse", "r2", "spearman"), numbers_by_loops(truth, out), strict=True):
                found[name, metric] = value
            continue
        labels = [int(t) for t in truth]
        found[name, "average_precision"] = average_precision_by_loops(labels, out)
        found[name, "auroc"] = auroc_by_pairs(labels, out)
        own = [
            sum(o >= 0.5 and t == 1 for t, o in zip(labels, out, strict=True)),
            sum(o >= 0.5 for o in out),
            sum(labels),
        ]
        hits, predicted, positives = hits + own[0], predicted + own[1], positives + own[2]
        f1s.append(2 * own[0] / (own[1] + own[2]))
    singles = ("average_precision", "auroc") if is_labels else ("r2", "spearman")
    for metric in singles:
        mean_name = "mean_average_precision" if metric == "average_precision" else f"mean_{metric}"
        found[None, mean_name] = float(np.mean([found[name, metric] for name in names]))
    if is_labels:
        found[None, "micro_f1"] = 2 * hits / (predicted + positives)
        found[None, "macro_f1"] = float(np.mean(f1s))
    return found


def test_a_label_without_positives_has_no_row_and_is_left_out_of_means() -> None:
    targets, probabilities = labels_case(3, holes=0)
    targets[:, 1] = np.where(targets[:, 1] == 1, 0, 0)
    rows = by_name(estimate_labels(targets, probabilities, names="abcd", seed=0, num_resamples=20))
    assert ("b", "average_precision") not in rows
    assert ("b", "auroc") not in rows
    singles = [rows[name, "average_precision"].value for name in "acd"]
    assert rows[None, "mean_average_precision"].value == pytest.approx(np.mean(singles))


def test_n_counts_images_with_a_value() -> None:
    targets, probabilities = labels_case(4)
    targets[:5] = NAN
    rows = by_name(estimate_labels(targets, probabilities, names="abcd", seed=0, num_resamples=5))
    assert rows["a", "auroc"].n == int((~np.isnan(targets[:, 0])).sum())
    assert rows[None, "mean_auroc"].n == int((~np.isnan(targets)).any(axis=1).sum()) == 55


def test_perfect_outputs_have_no_uncertainty() -> None:
    targets, _ = labels_case(5, holes=0)
    for row in estimate_labels(targets, targets[None].astype(float), names="abcd", seed=0, num_resamples=50):
        assert (row.estimate.value, row.estimate.low, row.estimate.high) == (1, 1, 1)
    truth, _ = numbers_case(5, holes=0)
    for row in estimate_numbers(truth, truth[None].astype(float), names="ab", seed=0, num_resamples=50):
        expected = 0 if row.estimate.name in ("mae", "rmse") else 1
        assert (row.estimate.value, row.estimate.low, row.estimate.high) == pytest.approx((expected,) * 3)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """60 simulated test sets: unit noise has a mean absolute error of √(2/π), and R² 0 over a unit signal."""
    generator = np.random.default_rng(0)
    num_covered = {"mae": 0, "r2": 0}
    expected = {"mae": np.sqrt(2 / np.pi), "r2": 0.0}
    for study in range(60):
        truth = generator.standard_normal((100, 1)).astype(np.float32)
        predictions = truth + generator.standard_normal((1, 100, 1))
        rows = by_name(estimate_numbers(truth, predictions, names="a", seed=study, num_resamples=200))
        for name in num_covered:
            num_covered[name] += rows["a", name].low <= expected[name] <= rows["a", name].high
    assert min(num_covered.values()) >= 52
