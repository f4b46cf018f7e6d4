"""Scores of predicted classes, and their bootstrap intervals over test images and label draws: arrays in, numbers out.

D is the number of draws: classifiers trained on different draws of the labels, scored on the same N test images.
Not here: predicting, choosing anything, plotting, writing files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

CALIBRATION_BINS = 15

# Resamples are weighed in blocks of about this many image weights, so memory does not grow with their number.
_BLOCK_WEIGHTS = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A score with its interval; `n` is the number of test images behind it."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table; `n` is the number of test images of the class."""

    name: str
    n: int
    precision: float
    recall: float
    f1: float


def confusion_matrix(labels: Labels, predictions: Labels, num_classes: int) -> Labels:
    """Count images by (label, prediction), int64 [C, C], rows are labels."""
    _check(labels, predictions, num_classes)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def accuracy(labels: Labels, predictions: Labels) -> float:
    """Share of images, in [0, 1], whose prediction is their label."""
    return float(np.mean(labels == predictions))


def balanced_accuracy(labels: Labels, predictions: Labels, num_classes: int) -> float:
    """Mean recall, in [0, 1], of the classes that occur among the labels."""
    table = confusion_matrix(labels, predictions, num_classes)
    return float(_mean_recall(np.diag(table), table.sum(axis=1)))


def macro_f1(labels: Labels, predictions: Labels, num_classes: int) -> float:
    """Mean F1, in [0, 1], of the classes that occur among labels or predictions."""
    table = confusion_matrix(labels, predictions, num_classes)
    return float(_mean_f1(np.diag(table), table.sum(axis=0), table.sum(axis=1)))


def class_scores(labels: Labels, predictions: Labels, class_names: Sequence[str]) -> list[ClassScore]:
    """Return one row per class, in the order of `class_names`; a score with nothing to divide by is 0."""
    table = confusion_matrix(labels, predictions, len(class_names))
    hits, predicted, actual = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    columns = (_ratio(hits, predicted), _ratio(hits, actual), _ratio(2 * hits, predicted + actual))
    return [
        ClassScore(name=name, n=int(n), precision=float(precision), recall=float(recall), f1=float(f1))
        for name, n, precision, recall, f1 in zip(class_names, actual, *columns, strict=True)
    ]


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, weighed by the images in each.

    Args:
        confidence: float [N] in [0, 1], probability of the predicted class.
        correct: bool [N], whether the prediction was right.
        bins: Number of bins; a bin includes its upper edge, the first one 0 as well.
    """
    gaps = np.bincount(_bin_of(confidence, bins), weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def estimate(
    labels: Labels,
    predictions: Labels,
    *,
    num_classes: int,
    seed: int,
    confidences: Floats | None = None,
    repeats: int = 1,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> list[Estimate]:
    """Estimate accuracy, balanced_accuracy, macro_f1 and, with confidences, expected_calibration_error.

    The value is the mean over draws of the metric on all images. The interval is a percentile bootstrap that resamples
    draws and images at once, each with replacement, all draws sharing the resampled images: it answers for other label
    draws and other test images together, leaning to the wide side when both matter. One draw resamples images only.
    The same seed draws the same resamples for every metric and every model. The interval is shifted by the resamples'
    bias, value − their mean: nothing to speak of for accuracy, but with ten images per class a resample's macro-F1 is
    lower, and its calibration error higher, than the data's, so far that the unshifted interval would miss the value.

    Args:
        labels: int64 [N] in [0, num_classes).
        predictions: int64 [D, N] in [0, num_classes).
        num_classes: C.
        seed: Seed of the resamples, >= 0.
        confidences: float [D, N] in [0, 1], probability of the predicted class.
        repeats: Neighbouring rows that learned from one draw, with different seeds; they are resampled as one.
        num_resamples: Resamples behind the interval.
        level: Coverage of the interval, in (0, 1).
    """
    _check(labels, predictions, num_classes)
    num_draws, num_images = predictions.shape
    counters = _class_counters(labels, predictions, num_classes)
    gap_counter = None if confidences is None else _gap_counter(labels, predictions, confidences)

    def scores_per_draw(weights: Floats) -> Floats:
        """Metrics [K, B, D] of every draw under image weights [N, B]."""
        actual = (counters[0] @ weights).T[:, None, :]
        hits, predicted = (_by_draw(counter @ weights, num_draws) for counter in counters[1:])
        scores = [hits.sum(axis=2) / num_images, _mean_recall(hits, actual), _mean_f1(hits, predicted, actual)]
        if gap_counter is not None:
            scores.append(np.abs(_by_draw(gap_counter @ weights, num_draws)).sum(axis=2) / num_images)
        return np.stack(scores)

    values = scores_per_draw(np.ones((num_images, 1)))[:, 0].mean(axis=1)
    resampled = np.concatenate(
        [
            np.einsum("kbd,bd->kb", scores_per_draw(image_weights), draw_weights)
            for image_weights, draw_weights in resamples(
                num_images, num_draws, num_resamples=num_resamples, seed=seed, repeats=repeats
            )
        ],
        axis=1,
    )
    names = ("accuracy", "balanced_accuracy", "macro_f1", "expected_calibration_error")
    return [
        interval_of(name, value, row, level=level, lowest=0.0, n=num_images)
        for name, value, row in zip(names, values, resampled, strict=False)
    ]


def paired_difference(
    labels: Labels,
    predictions_a: Labels,
    predictions_b: Labels,
    *,
    seed: int,
    repeats: int = 1,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Estimate accuracy(a) − accuracy(b) of two models on the same test images and the same label draws.

    Both models see each resample, so what they share (hard images, lucky draws) cancels: the interval is usually much
    narrower than the two separate ones suggest, and excludes 0 where the difference holds.

    Args:
        labels: int64 [N].
        predictions_a: int64 [D, N].
        predictions_b: int64 [D, N]; row d learned from the same labels as row d of `predictions_a`.
        seed: Seed of the resamples, >= 0.
        repeats: Neighbouring rows that learned from one draw, with different seeds; they are resampled as one.
        num_resamples: Resamples behind the interval.
        level: Coverage of the interval, in (0, 1).
    """
    assert predictions_a.shape == predictions_b.shape, "a pair shares its draws and images"
    num_draws, num_images = predictions_a.shape
    assert len(labels) == num_images, "one label per image"
    gain = (predictions_a == labels).astype(np.float64) - (predictions_b == labels)
    resampled = np.concatenate(
        [
            np.einsum("db,bd->b", gain @ image_weights / num_images, draw_weights)
            for image_weights, draw_weights in resamples(
                num_images, num_draws, num_resamples=num_resamples, seed=seed, repeats=repeats
            )
        ]
    )
    return interval_of("accuracy_difference", gain.mean(), resampled, level=level, lowest=-1.0, n=num_images)


def resamples(
    num_images: int, num_rows: int, *, num_resamples: int, seed: int, repeats: int = 1
) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of image weights [N, B], summing to N, and row weights [B, D], summing to 1.

    Each resample has its own generator: the blocks' size must not change the numbers, and the images of a resample do
    not depend on the number of draws. Rows that repeat a draw share its weight.
    """
    assert num_rows % repeats == 0, "every draw is repeated as often"
    num_draws = num_rows // repeats
    block = max(1, _BLOCK_WEIGHTS // num_images)
    for first in range(0, num_resamples, block):
        numbers = range(first, min(first + block, num_resamples))
        image_weights = np.empty((len(numbers), num_images))
        draw_weights = np.empty((len(numbers), num_draws))
        for row, number in enumerate(numbers):
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
            image_weights[row] = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)
            picked = generator.integers(num_draws, size=num_draws)
            draw_weights[row] = np.bincount(picked, minlength=num_draws) / num_draws
        yield np.ascontiguousarray(image_weights.T), np.repeat(draw_weights, repeats, axis=1) / repeats


def _class_counters(labels: Labels, predictions: Labels, num_classes: int) -> tuple[csr_array, csr_array, csr_array]:
    """Sparse matrices that turn image weights [N, B] into counts by class.

    The counts are of labels [C, B], and of hits and of predictions [D·C, B], draw by draw. F1 and recall
    need these three alone; a confusion matrix per resample and draw would cost C times as much.
    """
    num_draws, num_images = predictions.shape
    images = np.tile(np.arange(num_images), num_draws)
    rows = (predictions + num_classes * np.arange(num_draws)[:, None]).ravel()
    is_hit = (predictions == labels).ravel()
    shape = (num_draws * num_classes, num_images)
    return (
        csr_array((np.ones(num_images), (labels, np.arange(num_images))), shape=(num_classes, num_images)),
        csr_array((np.ones(is_hit.sum()), (rows[is_hit], images[is_hit])), shape=shape),
        csr_array((np.ones(len(rows)), (rows, images)), shape=shape),
    )


def _gap_counter(labels: Labels, predictions: Labels, confidences: Floats) -> csr_array:
    """Sparse matrix that turns image weights [N, B] into sums of (confidence − correct) by draw and bin."""
    assert confidences.shape == predictions.shape, "one confidence per prediction"
    num_draws, num_images = predictions.shape
    rows = (_bin_of(confidences, CALIBRATION_BINS) + CALIBRATION_BINS * np.arange(num_draws)[:, None]).ravel()
    gaps = (confidences - (predictions == labels)).ravel()
    images = np.tile(np.arange(num_images), num_draws)
    return csr_array((gaps, (rows, images)), shape=(num_draws * CALIBRATION_BINS, num_images))


def _by_draw(counts: Floats, num_draws: int) -> Floats:
    """[D·C, B] -> [B, D, C]."""
    num_rows, num_resamples = counts.shape
    by_draw = counts.reshape(num_draws, num_rows // num_draws, num_resamples)
    return np.asarray(by_draw.transpose(2, 0, 1), dtype=np.float64)


def _bin_of(confidence: Floats, bins: int) -> Labels:
    assert np.all((confidence >= 0.0) & (confidence <= 1.0 + 1e-6)), "a confidence is a probability"
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _ratio(numerator: NDArray[np.generic], denominator: NDArray[np.generic]) -> Floats:
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    ratio: Floats = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    return ratio


def _mean_recall(hits: NDArray[np.generic], actual: NDArray[np.generic]) -> Floats:
    """Mean over the last axis, classes without a label left out."""
    return np.asarray(_ratio(hits, actual).sum(axis=-1) / np.count_nonzero(actual, axis=-1))


def _mean_f1(hits: NDArray[np.number], predicted: NDArray[np.number], actual: NDArray[np.number]) -> Floats:
    """Mean over the last axis, classes that are neither label nor prediction left out."""
    total = predicted + actual
    return np.asarray(_ratio(2 * hits, total).sum(axis=-1) / np.count_nonzero(total, axis=-1))


def interval_of(
    name: str, value: float, resampled: Floats, *, level: float, lowest: float, n: int, highest: float = 1.0
) -> Estimate:
    """The percentile interval of resampled values [B], shifted by their bias and clipped to [lowest, highest]."""
    assert 0.0 < level < 1.0, "a level lies between 0 and 1"
    shifted = resampled + (value - resampled.mean())
    # Clipped, for the shift must not promise impossible scores; widened, for value and resamples round differently.
    low, high = np.clip(np.quantile(shifted, [(1.0 - level) / 2.0, (1.0 + level) / 2.0]), lowest, highest)
    value = float(value)
    return Estimate(name=name, value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _check(labels: Labels, predictions: Labels, num_classes: int) -> None:
    assert labels.ndim == 1, "labels are [N]"
    assert len(labels) == predictions.shape[-1] > 0, "one prediction per label"
    for classes in (labels, predictions):
        assert 0 <= classes.min() <= classes.max() < num_classes, "classes lie in [0, num_classes)"
