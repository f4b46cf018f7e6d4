"""Scores of multi-label and regression predictions with bootstrap intervals: arrays in, numbers out.

The bootstrap is that of `metrics`: images and draws resampled together, the same resamples for every metric. Missing
targets (NaN) take no part. D draws, N images, K targets, B resamples. Classes are scored in `metrics`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_ft.evaluate.metrics import Estimate, Floats, interval_of, resamples

THRESHOLD = 0.5
"""Probability from which a label counts as predicted."""

# Metrics of one draw and target under image weights [n, B]: -> [M, B], NaN where there is nothing to divide by.
_Scorer = Callable[[Floats, Floats, Floats], Floats]


@dataclass(frozen=True)
class TargetEstimate:
    """A score with its interval, of one target; `target` None: of all together."""

    target: str | None
    estimate: Estimate


@dataclass(frozen=True)
class _Metric:
    """A metric's name, the least and the most it can be, and what it is called as a mean over targets, if it is."""

    name: str
    lowest: float
    highest: float
    mean_name: str | None = None


_LABEL_METRICS = (
    _Metric("average_precision", 0.0, 1.0, "mean_average_precision"),
    _Metric("auroc", 0.0, 1.0, "mean_auroc"),
)
_F1_METRICS = (_Metric("micro_f1", 0.0, 1.0), _Metric("macro_f1", 0.0, 1.0))
_NUMBER_METRICS = (
    _Metric("mae", 0.0, np.inf),
    _Metric("rmse", 0.0, np.inf),
    _Metric("r2", -np.inf, 1.0, "mean_r2"),
    _Metric("spearman", -1.0, 1.0, "mean_spearman"),
)


def ranking_scores(truth: Floats, scores: Floats, weights: Floats) -> Floats:
    """Average precision Σ (Rᵢ − Rᵢ₋₁) Pᵢ over distinct scores, and the area under the ROC curve; [2, B].

    Images with equal scores come in together, as scikit-learn has it. NaN without a positive, and for the area without
    a negative.

    Args:
        truth: [n] of 0 and 1.
        scores: [n].
        weights: [n, B], how often each image is there.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(weights[order] * truth[order, None], axis=0)[ends]
    taken = np.cumsum(weights[order], axis=0)[ends]
    positives, negatives = found[-1], taken[-1] - found[-1]
    new = np.diff(found, axis=0, prepend=0.0)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    wrong = taken - found
    # A positive outranks the negatives that come after it, and half of those beside it.
    behind = negatives - wrong + 0.5 * np.diff(wrong, axis=0, prepend=0.0)
    return np.stack([_over((new * precision).sum(0), positives), _over((new * behind).sum(0), positives * negatives)])


def regression_scores(truth: Floats, predictions: Floats, weights: Floats) -> Floats:
    """Mean absolute error, root of the mean squared error, R² and Spearman's rank correlation; [4, B].

    R² and the correlation are NaN where all truths are equal; the correlation is 0 where all predictions are.

    Args:
        truth: [n].
        predictions: [n].
        weights: [n, B], how often each image is there.
    """
    count = weights.sum(0)
    error = predictions - truth
    squared = error**2 @ weights
    centred = truth - truth.mean()  # R² of large numbers would lose its digits
    # Whether all truths of a resample are equal, told by their spread and not by a rounded sum of squares.
    is_flat = _spread(truth, weights) == 0
    variation = centred**2 @ weights - (centred @ weights) ** 2 / count
    r2 = 1 - _over(squared, np.where(is_flat, 0.0, variation))
    spearman = _correlation(_midranks(truth, weights), _midranks(predictions, weights), weights)
    spearman = np.where(_spread(predictions, weights) == 0, 0.0, spearman)
    return np.stack(
        [np.abs(error) @ weights / count, np.sqrt(squared / count), r2, np.where(is_flat, np.nan, spearman)]
    )


def estimate_labels(
    targets: NDArray[np.float32],
    probabilities: Floats,
    *,
    names: Sequence[str],
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> list[TargetEstimate]:
    """Estimate mean average precision, mean AUROC, micro- and macro-F1 at 0.5, then AP and AUROC of each label.

    Means are over the labels that have a positive (for the AUROC a negative too) among the images, or the resampled
    ones; macro-F1 is over those that are there or predicted. A label without either has no row.

    Args:
        targets: float32 [N, K] of 0 and 1, NaN = missing.
        probabilities: float [D, N, K].
        names: of the labels.
        seed: of the resamples.
        num_resamples: behind the intervals.
        level: coverage of the intervals, in (0, 1).
    """
    ranked = _resampled(targets, probabilities, ranking_scores, seed=seed, num_resamples=num_resamples)
    overall = _f1_resampled(targets, probabilities, seed=seed, num_resamples=num_resamples)
    rows = _mean_rows(_LABEL_METRICS, ranked, targets, level=level)
    rows += [
        TargetEstimate(None, _estimate(metric, values, n=_num_known(targets), level=level))
        for metric, values in zip(_F1_METRICS, overall, strict=True)
    ]
    return rows + _target_rows(_LABEL_METRICS, ranked, targets, names, level=level)


def estimate_numbers(
    targets: NDArray[np.float32],
    predictions: Floats,
    *,
    names: Sequence[str],
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> list[TargetEstimate]:
    """Estimate mean R² and mean Spearman correlation over the targets, then MAE, RMSE, R² and Spearman of each.

    Args:
        targets: float32 [N, K], NaN = missing.
        predictions: float [D, N, K], in the targets' units.
        names: of the targets.
        seed: of the resamples.
        num_resamples: behind the intervals.
        level: coverage of the intervals, in (0, 1).
    """
    found = _resampled(targets, predictions, regression_scores, seed=seed, num_resamples=num_resamples)
    means = _mean_rows(_NUMBER_METRICS, found, targets, level=level)
    return means + _target_rows(_NUMBER_METRICS, found, targets, names, level=level)


def paired_target_difference(
    targets: NDArray[np.float32],
    outputs_a: Floats,
    outputs_b: Floats,
    *,
    task: str,
    seed: int,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Estimate score(a) − score(b) on the same images: mean average precision of labels, mean R² of numbers.

    Both see each resample, as in `metrics.paired_difference`. The means are over the targets for which the score is
    defined on all images; where it is for none there is nothing to compare, and value and interval are 0 to 0 of n = 0.

    Args:
        targets: float32 [N, K], NaN = missing.
        outputs_a: float [N, K], probabilities or numbers.
        outputs_b: float [N, K].
        task: "multi_label" or "regression".
        seed: of the resamples.
        num_resamples: behind the interval.
        level: coverage of the interval, in (0, 1).
    """
    scorer, row, lowest = (ranking_scores, 0, -1.0) if task == "multi_label" else (regression_scores, 2, -np.inf)
    name = "mean_average_precision_difference" if task == "multi_label" else "mean_r2_difference"
    both = [
        _resampled(targets, outputs[None], scorer, seed=seed, num_resamples=num_resamples)
        for outputs in (outputs_a, outputs_b)
    ]
    defined = ~np.isnan(both[0].values[row])
    if not defined.any():
        return Estimate(name, 0.0, 0.0, 0.0, 0)
    value = float(both[0].values[row, defined].mean() - both[1].values[row, defined].mean())
    means = [_nanmean(each.resampled[row, defined], axis=0) for each in both]
    gain = means[0] - means[1]
    known = gain[~np.isnan(gain)]
    known = known if len(known) else np.array([lowest, -lowest])
    return interval_of(name, value, known, level=level, lowest=lowest, highest=-lowest, n=_num_known(targets))


def f1_counts(targets: NDArray[np.float32], probabilities: Floats, weights: Floats) -> Floats:
    """Hits, predictions and positives of each label under image weights [N, B]: [3, K, B]."""
    is_known = ~np.isnan(targets)
    is_positive = np.nan_to_num(targets) == 1
    is_predicted = (probabilities >= THRESHOLD) & is_known
    parts = (is_positive & is_predicted, is_predicted, is_positive)
    return np.stack([part.T.astype(np.float64) @ weights for part in parts])


def mean_average_precision(targets: NDArray[np.float32], scores: Floats) -> float:
    """Mean over labels with a positive of the average precision; NaN where no label has one. Arrays [N, K]."""
    return float(_nanmean(_point(targets, scores, ranking_scores)[0], axis=0))


def mean_r2(targets: NDArray[np.float32], predictions: Floats) -> float:
    """Mean R² over targets that vary; NaN where none does. Arrays [N, K]."""
    return float(_nanmean(_point(targets, predictions, regression_scores)[2], axis=0))


def _point(targets: NDArray[np.float32], outputs: Floats, scorer: _Scorer) -> Floats:
    """[M, K] on all images."""
    ones = np.ones((len(targets), 1))
    return _weighed(targets, outputs[None], scorer, ones)[:, :, 0, 0]


def _weighed(targets: NDArray[np.float32], outputs: Floats, scorer: _Scorer, weights: Floats) -> Floats:
    """[M, K, D, B]: the scorer on every target and draw; a target of which nothing is known is NaN."""
    num_draws, _, num_targets = outputs.shape
    columns: list[list[Floats]] = []
    for target in range(num_targets):
        known = np.flatnonzero(~np.isnan(targets[:, target]))
        if not len(known):  # any image, not there once: all metrics are undefined
            known, kept = np.zeros(1, np.int64), 0 * weights[:1]
        else:
            kept = weights[known]
        truth = np.nan_to_num(targets[known, target]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            columns.append([scorer(truth, outputs[draw, known, target], kept) for draw in range(num_draws)])
    return np.asarray(columns).transpose(2, 0, 1, 3)


@dataclass(frozen=True, eq=False)
class _Resampled:
    """Metrics [M, K] on all images, mean over draws, and [M, K, B] on every resample, NaN where undefined."""

    values: Floats
    resampled: Floats


def _resampled(
    targets: NDArray[np.float32], outputs: Floats, scorer: _Scorer, *, seed: int, num_resamples: int
) -> _Resampled:
    assert outputs.shape[1:] == targets.shape, "one output per target"
    outputs = np.asarray(outputs, np.float64)
    num_draws, num_images, _ = outputs.shape
    values = _weighed(targets, outputs, scorer, np.ones((num_images, 1)))[..., 0].mean(axis=2)
    blocks = [
        np.einsum("mkdb,bd->mkb", _weighed(targets, outputs, scorer, image_weights), draw_weights)
        for image_weights, draw_weights in resamples(num_images, num_draws, num_resamples=num_resamples, seed=seed)
    ]
    return _Resampled(values, np.concatenate(blocks, axis=2))


def _f1_resampled(
    targets: NDArray[np.float32], probabilities: Floats, *, seed: int, num_resamples: int
) -> list[tuple[float, Floats]]:
    """Micro- and macro-F1: the value and [B] on every resample."""
    num_draws, num_images, _ = probabilities.shape

    def both(weights: Floats) -> Floats:
        """[2, D, B]."""
        found = []
        for draw in range(num_draws):
            hits, predicted, positives = f1_counts(targets, probabilities[draw], weights)
            total = predicted + positives
            single = np.where(total > 0, _over(2 * hits, total), np.nan)
            micro = np.nan_to_num(_over(2 * hits.sum(0), total.sum(0)))
            found.append([micro, np.nan_to_num(_nanmean(single, axis=0))])
        return np.asarray(found).transpose(1, 0, 2)

    values = both(np.ones((num_images, 1)))[..., 0].mean(axis=1)
    blocks = [
        np.einsum("mdb,bd->mb", both(image_weights), draw_weights)
        for image_weights, draw_weights in resamples(num_images, num_draws, num_resamples=num_resamples, seed=seed)
    ]
    return list(zip(values.tolist(), np.concatenate(blocks, axis=1), strict=True))


def _mean_rows(
    metrics: Sequence[_Metric], found: _Resampled, targets: NDArray[np.float32], *, level: float
) -> list[TargetEstimate]:
    rows = []
    for metric, values, resampled in zip(metrics, found.values, found.resampled, strict=True):
        if metric.mean_name is not None and not np.isnan(values).all():
            # Only the targets that the value is a mean of, in the resamples too.
            defined = ~np.isnan(values)
            mean = (float(values[defined].mean()), _nanmean(resampled[defined], axis=0))
            named = _Metric(metric.mean_name, metric.lowest, metric.highest)
            rows.append(TargetEstimate(None, _estimate(named, mean, n=_num_known(targets), level=level)))
    return rows


def _target_rows(
    metrics: Sequence[_Metric], found: _Resampled, targets: NDArray[np.float32], names: Sequence[str], *, level: float
) -> list[TargetEstimate]:
    return [
        TargetEstimate(
            name,
            _estimate(
                metric,
                (float(found.values[row, column]), found.resampled[row, column]),
                n=int((~np.isnan(targets[:, column])).sum()),
                level=level,
            ),
        )
        for column, name in enumerate(names)
        for row, metric in enumerate(metrics)
        if not np.isnan(found.values[row, column])
    ]


def _estimate(metric: _Metric, found: tuple[float, Floats], *, n: int, level: float) -> Estimate:
    value, resampled = found
    known = resampled[~np.isnan(resampled)]
    # Where hardly an image carries the metric all resamples may miss it: then nothing is known of its spread.
    known = known if len(known) else np.array([metric.lowest, metric.highest])
    return interval_of(metric.name, value, known, level=level, lowest=metric.lowest, highest=metric.highest, n=n)


def _num_known(targets: NDArray[np.float32]) -> int:
    """Images with at least one target."""
    return int((~np.isnan(targets)).any(axis=1).sum())


def _over(top: Floats, bottom: Floats) -> Floats:
    """The ratio, NaN where the denominator is 0."""
    ratio: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
    return ratio


def _nanmean(values: Floats, *, axis: int) -> Floats:
    """Mean of the values that are there; NaN where none is."""
    count = (~np.isnan(values)).sum(axis=axis)
    return _over(np.nansum(values, axis=axis), count.astype(np.float64))


def _spread(values: Floats, weights: Floats) -> Floats:
    """Largest less smallest value of the images that are there, [B]."""
    is_there = weights > 0
    highest = np.where(is_there, values[:, None], -np.inf).max(axis=0)
    return np.asarray(highest - np.where(is_there, values[:, None], np.inf).min(axis=0))


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Rank [n, B] of each value in each resample, ties sharing the mean of theirs, repeats being ties."""
    order = np.argsort(values, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(values[order])) + 1)
    sizes = np.add.reduceat(weights[order], starts, axis=0)
    ranks = np.cumsum(sizes, axis=0) - sizes / 2
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    spread: Floats = np.empty_like(weights)
    spread[order] = ranks[group]
    return spread


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Pearson's correlation of [n, B] and [n, B] under weights [n, B]."""
    count = weights.sum(0)
    a, b = a - (a * weights).sum(0) / count, b - (b * weights).sum(0) / count
    return _over((a * b * weights).sum(0), np.sqrt((a * a * weights).sum(0) * (b * b * weights).sum(0)))
