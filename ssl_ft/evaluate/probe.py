"""The linear probe: multinomial logistic regression with an L2 penalty on standardised features.

The objective is written out in `fit_linear` and minimised to its (unique) solution, so a probe's score depends on the
features and labels alone, not on a learning rate or a number of epochs. Not here: extracting features, drawing label
budgets, scoring. No function of this file is ever handed a test label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ssl_ft.data.splits import carve_val
from ssl_ft.errors import UserError

Floats = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

# Strongest first. With hundreds of standardised features 100 all but averages each class; below 1e-4 the solution on a
# few hundred labels no longer changes its mind about any image.
STRENGTHS = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT_STRENGTH = 1.0

# Past this many labels one val split is as telling as folds and several times cheaper.
_FOLDS_UP_TO = 2000

# Largest entry of the gradient to stop at. Choosing needs a ranking only: 1e-4 picked probes of the same accuracy to
# 0.001 for 1.6 times the time. The probe itself needs the solution: few labels of well separated classes hardly
# determine the bias, and 1e-9 settles it to five digits.
_CHOOSING_TOLERANCE = 1e-3
_FINAL_TOLERANCE = 1e-9
_REQUIRED_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe: probabilities = softmax(((features − mean) / scale) @ weights + bias).

    Attributes:
        weights: float64 [D, C].
        bias: float64 [C], −inf for a class that had no label to learn from: its probability is 0.
        mean: float64 [D], subtracted from each feature.
        scale: float64 [D], each feature is divided by it.
        strength: Weight of the L2 penalty.
    """

    weights: Floats
    bias: Floats
    mean: Floats
    scale: Floats
    strength: float

    def predict_proba(self, features: Features) -> Floats:
        """Return class probabilities, float64 [N, C], of features [N, D] that have not been standardised."""
        logits = _standardised(features, mean=self.mean, scale=self.scale) @ self.weights + self.bias
        return np.asarray(softmax(logits, axis=1), dtype=np.float64)


def standardise(reference: Features) -> tuple[Floats, Floats]:
    """Return (mean, scale), float64 [D] each, of reference features [N, D].

    The reference needs no labels: pass the features of all training images, the few labelled ones are too few.
    A feature that is constant up to float32 rounding gets scale 1, or its rounding noise would count as a signal.
    """
    values = reference.astype(np.float64)
    mean = values.mean(axis=0)
    deviation = values.std(axis=0)
    return mean, np.where(deviation > 1e-6 * np.abs(mean), deviation, 1.0)


def fit_linear(
    features: Features, labels: Labels, *, strength: float, num_classes: int, mean: Floats, scale: Floats
) -> LinearProbe:
    """Return the probe that minimises mean cross-entropy + strength/2 · ‖weights‖² over these labels.

    The mean runs over the N labels, weights are [D, C] for standardised features, the bias is free. (In scikit-learn's
    `LogisticRegression` this is C = 1 / (strength · N), and twice that for two classes, where it fits one column.)

    Args:
        features: float [N, D], not yet standardised.
        labels: int64 [N] in [0, num_classes). Classes that are absent get probability 0.
        strength: Weight of the penalty, > 0.
        num_classes: C.
        mean: float64 [D], as from `standardise`.
        scale: float64 [D], as from `standardise`.

    Raises:
        UserError: One class only, or features that are not finite.
    """
    assert strength > 0, "the penalty makes the solution unique, so it must be positive"
    present, targets = _one_hot(labels, num_classes)
    standard = _standardised(features, mean=mean, scale=scale)
    centre = standard.mean(axis=0)
    design, axes = _rotated(standard - centre)
    # Twice: the second run rescales its unknowns by the curvature where the first one ended.
    rough = _minimise(design, targets, strength=strength, start=None, tolerance=_CHOOSING_TOLERANCE)
    solution = _minimise(design, targets, strength=strength, start=rough, tolerance=_FINAL_TOLERANCE)
    weights = np.zeros((len(centre), num_classes))
    weights[:, present] = axes @ solution[:, 1:].T
    bias = np.full(num_classes, -np.inf)
    bias[present] = solution[:, 0] - centre @ weights[:, present]
    return LinearProbe(weights=weights, bias=bias, mean=mean, scale=scale, strength=strength)


def choose_strength(
    features: Features,
    labels: Labels,
    *,
    num_classes: int,
    mean: Floats,
    scale: Floats,
    seed: int,
    val: tuple[Features, Labels] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
) -> float:
    """Return the penalty with the lowest mean log-loss on labels held out from the fit; on a tie the stronger one.

    Log-loss rather than accuracy: with ten held-out labels accuracy moves in steps of a tenth and most strengths tie,
    while log-loss still tells them apart, and it favours the probe whose probabilities can be trusted. Strengths are
    tried from the strongest on, and the search ends once the loss has risen twice in a row (over-fitting has set in).

    Held out are either the val labels given or, in turn, stratified folds of the labels themselves. A class with one
    label is never held out; where no class has two, nothing can be, and `DEFAULT_STRENGTH` is returned. Val labels of a
    class without a training label are left aside: no strength could get them right.

    Args:
        features: float [N, D], not yet standardised.
        labels: int64 [N] in [0, num_classes).
        num_classes: C.
        mean: float64 [D], as from `standardise`.
        scale: float64 [D], as from `standardise`.
        seed: Seed of the folds, >= 0.
        val: Features [M, D] and labels [M] to choose on instead of folds.
        strengths: What to choose from, each > 0.
        folds: Number of folds, >= 2.
    """
    standard = _standardised(features, mean=mean, scale=scale)
    present, targets = _one_hot(labels, num_classes)
    centre = standard.mean(axis=0)
    design, axes = _rotated(standard - centre)
    if val is None:
        fold_of = assign_folds(labels, folds=folds, seed=seed)
        parts = [
            (design[fold_of != fold], targets[:, fold_of != fold], design[fold_of == fold], targets[:, fold_of == fold])
            for fold in np.unique(fold_of[fold_of >= 0])
        ]
    else:
        is_known = np.isin(val[1], present)
        held_out = (_standardised(val[0][is_known], mean=mean, scale=scale) - centre) @ axes
        held_targets = (val[1][is_known] == present[:, None]).astype(np.float64)
        parts = [(design, targets, held_out, held_targets)] if is_known.any() else []
    return _best_strength(parts, sorted(strengths, reverse=True)) if parts else DEFAULT_STRENGTH


def assign_folds(labels: Labels, *, folds: int, seed: int) -> Labels:
    """Return the fold of each label, int64 [N]; −1 for the only label of a class, which is never held out.

    Folds are stratified and shuffled. No more folds are made than the smallest class with two labels or more can fill,
    so that each fold's training part keeps the proportions of the classes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    fold_of = np.full(len(labels), -1, dtype=np.int64)
    num_folds = min(folds, int(counts[counts >= 2].min(initial=folds)))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(labels)])))
    num_placed = 0
    for cls in classes[counts >= 2]:
        members = generator.permutation(np.flatnonzero(labels == cls))
        # Each class goes on where the last one stopped, or all left-overs would pile up in the first folds.
        fold_of[members] = (np.arange(len(members)) + num_placed) % num_folds
        num_placed += len(members)
    return fold_of


def probe_budget(
    features: Features, labels: Labels, *, num_classes: int, mean: Floats, scale: Floats, seed: int
) -> LinearProbe:
    """Return a probe of one label budget: strength chosen inside the budget, then fitted on all its labels.

    Up to 2000 labels the strength is chosen on five folds, above on one stratified fifth. Arguments as in
    `choose_strength`; all N labels given count as the budget.
    """
    fit, val = np.arange(len(labels)), None
    if len(labels) > _FOLDS_UP_TO:
        fit, held_out = carve_val(labels, fit, seed=seed, draw=0)
        val = (features[held_out], labels[held_out])
    strength = choose_strength(
        features[fit], labels[fit], num_classes=num_classes, mean=mean, scale=scale, seed=seed, val=val
    )
    return fit_linear(features, labels, strength=strength, num_classes=num_classes, mean=mean, scale=scale)


def _best_strength(parts: list[tuple[Floats, Floats, Floats, Floats]], strengths: list[float]) -> float:
    """Walk from strong to weak; each fit starts from the last one's solution, which is near."""
    solutions: list[Floats | None] = [None] * len(parts)
    best, best_loss, previous, num_rises = strengths[0], np.inf, np.inf, 0
    for strength in strengths:
        loss = 0.0
        for number, (design, targets, held_out, held_targets) in enumerate(parts):
            solution = _minimise(
                design, targets, strength=strength, start=solutions[number], tolerance=_CHOOSING_TOLERANCE
            )
            solutions[number] = solution
            loss -= float((log_softmax(solution[:, 1:] @ held_out.T + solution[:, :1], axis=0) * held_targets).sum())
        if loss < best_loss:
            best, best_loss = strength, loss
        num_rises = num_rises + 1 if loss > previous else 0
        if num_rises == 2:
            break
        previous = loss
    return best


def _standardised(features: Features, *, mean: Floats, scale: Floats) -> Floats:
    standard = (features.astype(np.float64) - mean) / scale
    if not np.isfinite(standard).all():
        bad = int((~np.isfinite(standard)).any(axis=1).sum())
        raise UserError(
            f"The encoder's features of {bad} of {len(standard)} images are not finite numbers, so no probe can be "
            "fitted or scored: the encoder's training has diverged or its weights are damaged; use another checkpoint."
        )
    return standard


def _one_hot(labels: Labels, num_classes: int) -> tuple[Labels, Floats]:
    """Classes present [P], ascending, and the targets [P, N] of a problem in these classes only."""
    present = np.unique(labels)
    assert len(present), "a probe needs labels"
    assert 0 <= present[0] <= present[-1] < num_classes, "labels lie in [0, num_classes)"
    if len(present) < 2:
        raise UserError(
            f"All {len(labels)} labels to learn from are of one class ({present[0]}): a probe needs two or more."
        )
    return present, (labels == present[:, None]).astype(np.float64)


def _rotated(centred: Floats) -> tuple[Floats, Floats]:
    """Coordinates [N, R] of the rows on their principal axes [D, R], orthonormal: centred = coordinates @ axes.T.

    The penalty does not see a rotation, so the solution is the same. With fewer rows than features it lies in the span
    of the rows (any part outside costs penalty and changes no logit): R = N, several times fewer unknowns.
    """
    if centred.shape[0] < centred.shape[1]:
        span, triangle = np.linalg.qr(centred.T)
        left, sizes, right = np.linalg.svd(triangle)
        return right.T * sizes, span @ left
    axes = np.linalg.eigh(centred.T @ centred)[1]
    return centred @ axes, axes


def _minimise(design: Floats, targets: Floats, *, strength: float, start: Floats | None, tolerance: float) -> Floats:
    """Solution [C, 1 + R] (bias first) of the objective of `fit_linear` for a design [N, R] and targets [C, N]."""
    (num_rows, num_axes), num_classes = design.shape, len(targets)
    first = np.zeros((num_classes, 1 + num_axes)) if start is None else start
    probabilities = softmax(first[:, 1:] @ design.T + first[:, :1], axis=0)
    # Unknowns are rescaled by the curvature at the start: softmax's p (1 − p) times the variance along the axis, plus
    # the penalty. Measured: up to four times fewer steps than without, most where the penalty is weak.
    spread = np.maximum(np.mean(probabilities * (1.0 - probabilities)), 1e-12)
    penalty = np.full(1 + num_axes, strength)
    penalty[0] = 0.0
    stretch = np.sqrt(spread * np.concatenate([[1.0], np.mean(design * design, axis=0)]) + penalty)

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        unknowns = flat.reshape(num_classes, 1 + num_axes) / stretch
        logits = unknowns[:, 1:] @ design.T
        logits += unknowns[:, :1]
        logits -= logits.max(axis=0)
        of_target = np.vdot(logits, targets)
        errors = np.exp(logits, out=logits)
        totals = errors.sum(axis=0)
        loss = (np.log(totals).sum() - of_target) / num_rows
        errors /= totals
        errors -= targets
        gradient = penalty * unknowns
        loss += 0.5 * np.vdot(gradient, unknowns)
        gradient[:, 0] += errors.mean(axis=1)
        gradient[:, 1:] += errors @ design / num_rows
        gradient /= stretch
        return float(loss), gradient.ravel()

    # ftol = 0: only the gradient decides; a small gain of one step says little about the distance to the solution.
    limits = {"gtol": tolerance / stretch.max(), "ftol": 0.0, "maxiter": 100_000, "maxfun": 200_000, "maxls": 50}
    result = minimize(loss_and_gradient, (first * stretch).ravel(), jac=True, method="L-BFGS-B", options=limits)
    steepest = float(np.abs(result.jac.reshape(first.shape) * stretch).max())
    assert steepest <= max(tolerance, _REQUIRED_TOLERANCE), f"probe did not converge: {result.message}, {steepest:.1e}"
    return np.asarray(result.x.reshape(first.shape) / stretch)
