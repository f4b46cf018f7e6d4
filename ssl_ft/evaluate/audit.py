"""What a model lost on its way into a file: arrays in, numbers out. Running and timing files is in `ssl_ft/export/`.

Both models answered the same N images, so a resample of images is shared by them and what they share cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssl_ft.evaluate.metrics import (
    Estimate,
    Floats,
    Labels,
    estimate,
    expected_calibration_error,
    interval_of,
    paired_difference,
    resamples,
)
from ssl_ft.evaluate.target_metrics import (
    THRESHOLD,
    TargetEstimate,
    estimate_labels,
    estimate_numbers,
    paired_target_difference,
)

# The score whose drop is limited, by task.
SCORES = {"classes": "accuracy", "multi_label": "mean_average_precision", "regression": "mean_r2"}


@dataclass(frozen=True)
class Loss:
    """What a child lost against a parent.

    Attributes:
        parent: the parent's scores.
        child: the child's.
        drop: score(parent) − score(child) with its paired interval; above 0 where something was lost.
        agreement: of classes and labels, the share of decisions both make alike; of numbers, 1 less the mean squared
            difference between them over the variance of the parent's, the mean over targets.
    """

    parent: tuple[TargetEstimate, ...]
    child: tuple[TargetEstimate, ...]
    drop: Estimate
    agreement: Estimate


def loss_of_classes(labels: Labels, parent: Floats, child: Floats, *, seed: int) -> Loss:
    """Of two models' shares, float [N, C], with labels int64 [N]."""
    scores, predicted = [], []
    for shares in (parent, child):
        guess = shares.argmax(1)
        found = estimate(labels, guess[None], confidences=shares.max(1)[None], num_classes=shares.shape[1], seed=seed)
        scores.append(tuple(TargetEstimate(None, each) for each in found))
        predicted.append(guess)
    drop = paired_difference(labels, predicted[0][None], predicted[1][None], seed=seed)
    agrees = (predicted[0] == predicted[1]).astype(np.float64)
    return Loss(scores[0], scores[1], replace(drop, name="accuracy_drop"), _agreement(agrees, seed=seed))


def loss_of_targets(
    targets: NDArray[np.float32], parent: Floats, child: Floats, *, names: Sequence[str], task: str, seed: int
) -> Loss:
    """Of two models' probabilities of labels, or numbers, float [N, K], with targets float32 [N, K], NaN = missing."""
    estimators = {"multi_label": estimate_labels, "regression": estimate_numbers}
    scores = [estimators[task](targets, outputs[None], names=names, seed=seed) for outputs in (parent, child)]
    if task == "multi_label":
        scores = [
            [*rows, TargetEstimate(None, label_calibration(targets, outputs))]
            for rows, outputs in zip(scores, (parent, child), strict=True)
        ]
        agrees = ((parent >= THRESHOLD) == (child >= THRESHOLD)).mean(axis=1)
    else:
        spread = np.where(parent.var(axis=0) > 0, parent.var(axis=0), 1.0)
        agrees = 1 - ((parent - child) ** 2 / spread).mean(axis=1)
    drop = paired_target_difference(targets, parent, child, task=task, seed=seed)
    named = replace(drop, name=f"{SCORES[task]}_drop")
    lowest = 0.0 if task == "multi_label" else -np.inf
    return Loss(tuple(scores[0]), tuple(scores[1]), named, _agreement(agrees, seed=seed, lowest=lowest))


def drop_of_classes(labels: Labels, first: Labels, child: Labels, *, seed: int) -> Estimate:
    """accuracy(first) − accuracy(child) of predicted classes, int64 [N] each, with its paired interval."""
    return replace(paired_difference(labels, first[None], child[None], seed=seed), name="accuracy_drop")


def label_calibration(targets: NDArray[np.float32], probabilities: Floats) -> Estimate:
    """Calibration error over all decisions of labels: the share of right ones among those equally sure.

    It has no interval: decisions about one image are not independent.
    """
    known = ~np.isnan(targets)
    sure = np.maximum(probabilities, 1 - probabilities)[known]
    is_right = ((probabilities >= THRESHOLD) == (np.nan_to_num(targets) == 1))[known]
    value = expected_calibration_error(sure, is_right)
    return Estimate("expected_calibration_error", value, value, value, int(known.any(axis=1).sum()))


def value_of(scores: Sequence[TargetEstimate], name: str) -> float | None:
    """The score of that name over all targets; None where there is none."""
    return next((each.estimate.value for each in scores if each.target is None and each.estimate.name == name), None)


def _agreement(agrees: Floats, *, seed: int, lowest: float = 0.0) -> Estimate:
    """The mean of a share for each image [N], with its interval."""
    blocks = [agrees @ weights / len(agrees) for weights, _ in resamples(len(agrees), 1, num_resamples=1000, seed=seed)]
    value = float(agrees.mean())
    return interval_of("agreement", value, np.concatenate(blocks), level=0.95, lowest=lowest, n=len(agrees))
