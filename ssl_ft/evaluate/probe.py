"""The linear probe: multinomial logistic regression with an L2 penalty on standardised features.

The objective is written out in `fit_linear` and minimised to its (unique) solution, so a probe's score depends on the
features and labels alone, not on a learning rate or a number of epochs. Not here: the solver (`logistic.py`), features,
drawing label budgets, scoring. No function of this file is ever handed a test label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from ssl_ft.data.splits import carve_val
from ssl_ft.errors import UserError
from ssl_ft.evaluate.logistic import log_losses, solve
from ssl_ft.evaluate.logistic_objective import Design, design_of

Floats = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

# Strongest first. With hundreds of standardised features 100 all but averages each class; below 1e-4 the solution on a
# few hundred labels no longer changes its mind about any image.
STRENGTHS = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT_STRENGTH = 1.0

# Past this many labels one val split is as telling as folds and several times cheaper.
_FOLDS_UP_TO = 2000

# Largest entry of the gradient to stop at. Choosing needs a ranking only: on a grid of decades 1e-4 picked probes of
# the same accuracy to 0.001 for 1.6 times the time (finer grids: `_choosing_tolerance`). The probe itself needs the
# solution: few labels of well separated classes hardly determine the bias, and 1e-9 settles it to five digits.
_CHOOSING_TOLERANCE = 1e-3
_FINAL_TOLERANCE = 1e-9

# Strengths solved together: enough for two products of matrices to serve many columns, few enough that a search that
# ends early has not paid for the weakest, which take the most steps.
_AT_ONCE = 4

# Rows in float64 at a time.
_BLOCK = 4096


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
        _check_finite(features, mean=self.mean, scale=self.scale)
        shares = np.empty((len(features), len(self.bias)))
        for start in range(0, len(features), _BLOCK):
            standard = (features[start : start + _BLOCK].astype(np.float64) - self.mean) / self.scale
            shares[start : start + _BLOCK] = softmax(standard @ self.weights + self.bias, axis=1)
        return shares


def standardise(reference: Features) -> tuple[Floats, Floats]:
    """Return (mean, scale), float64 [D] each, of reference features [N, D].

    The reference needs no labels: pass the features of all training images, the few labelled ones are too few.
    A feature that is constant up to float32 rounding gets scale 1, or its rounding noise would count as a signal.
    """
    mean, squares = reference.mean(axis=0, dtype=np.float64), np.zeros(reference.shape[1])
    for start in range(0, len(reference), _BLOCK):
        squares += np.square(reference[start : start + _BLOCK] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(reference))
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
    _check_finite(features, mean=mean, scale=scale)
    present, codes = _coded(labels, num_classes)
    design = design_of(_tensor(features), _tensor(scale))
    found = solve(
        design,
        codes,
        strengths=torch.tensor([strength], dtype=torch.float64),
        num_classes=len(present),
        tolerance=_FINAL_TOLERANCE,
    )
    weights, bias = np.zeros((len(mean), num_classes)), np.full(num_classes, -np.inf)
    weights[:, present], bias[present] = found.weights[0].T.numpy(), found.bias[0].numpy()
    bias[present] -= (design.origin.numpy() - mean) / scale @ weights[:, present]
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
    tried from the strongest on, a few of them on all folds together, and the search ends once the loss has risen twice
    in a row (over-fitting has set in).

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
    _check_finite(features, mean=mean, scale=scale)
    present, codes = _coded(labels, num_classes)
    if val is None:
        fold_of = assign_folds(labels, folds=folds, seed=seed)
        is_held = [fold_of == fold for fold in np.unique(fold_of[fold_of >= 0])]
        held_out = [(features[held], labels[held]) for held in is_held]
    else:
        is_known, is_held = np.isin(val[1], present), [np.zeros(len(labels), dtype=np.bool_)]
        held_out = [(val[0][is_known], val[1][is_known])] if is_known.any() else []
        _check_finite(val[0][is_known], mean=mean, scale=scale)
    if not held_out:
        return DEFAULT_STRENGTH
    design = design_of(_tensor(features), _tensor(scale))
    parts = [(_tensor(rows), torch.from_numpy(np.searchsorted(present, known))) for rows, known in held_out]
    kept = torch.from_numpy(~np.stack(is_held)) if val is None else None
    return _best_strength(design, codes, kept, parts, num_classes=len(present), strengths=strengths)


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


def _best_strength(
    design: Design,
    codes: Tensor,
    kept: Tensor | None,
    held_out: list[tuple[Tensor, Tensor]],
    *,
    num_classes: int,
    strengths: Sequence[float],
) -> float:
    """Walk from strong to weak, a few at a time; each starts from the weakest solved before, which is near."""
    ordered = np.sort(np.asarray(strengths, dtype=np.float64))[::-1].copy()
    losses, theta = np.empty(0), None
    for some in torch.from_numpy(ordered).split(_AT_ONCE):
        found = solve(
            design,
            codes,
            strengths=some.repeat(len(held_out)),
            num_classes=num_classes,
            tolerance=_choosing_tolerance(ordered),
            kept=None if kept is None else kept.repeat_interleave(len(some), dim=0),
            start=None if theta is None else theta.repeat_interleave(len(some), dim=0),
        )
        theta = found.theta[len(some) - 1 :: len(some)]
        total = torch.zeros(len(some), dtype=torch.float64)
        for weights, bias, part in zip(
            found.weights.split(len(some)), found.bias.split(len(some)), held_out, strict=True
        ):
            for rows, known in zip(part[0].split(_BLOCK), part[1].split(_BLOCK), strict=True):
                total += log_losses(weights, bias, (rows.double() - design.origin) / design.scale, known)
        losses = np.append(losses, total.numpy())
        has_risen = np.diff(losses) > 0
        if (has_risen[1:] & has_risen[:-1]).any():
            break
    return float(ordered[losses.argmin()])


def _choosing_tolerance(ordered: Floats) -> float:
    """Near its minimum the loss is a parabola in log strength: half the step of the grid tells a quarter as much."""
    steps = -np.diff(np.log10(ordered))
    step = float(steps[steps > 0].min(initial=1.0))
    return _CHOOSING_TOLERANCE * step**2


def _check_finite(features: Features, *, mean: Floats, scale: Floats) -> None:
    is_bad: NDArray[np.bool_] = np.asarray(~np.isfinite(features).all(axis=1))
    # Of the mean of all training images one bad one is enough to spoil every row.
    is_bad |= not bool(np.isfinite(mean).all() and np.isfinite(scale).all())
    if is_bad.any():
        raise UserError(
            f"The encoder's features of {is_bad.sum()} of {len(is_bad)} images are not finite numbers, so no probe can "
            "be fitted or scored: the encoder's training has diverged or its weights are damaged; use another "
            "checkpoint."
        )


def _coded(labels: Labels, num_classes: int) -> tuple[Labels, Tensor]:
    """Classes present [P], ascending, and each label's place among them, int64 [N]."""
    present, codes = np.unique(labels, return_inverse=True)
    assert len(present), "a probe needs labels"
    assert 0 <= present[0] <= present[-1] < num_classes, "labels lie in [0, num_classes)"
    if len(present) < 2:
        raise UserError(
            f"All {len(labels)} labels to learn from are of one class ({present[0]}): a probe needs two or more."
        )
    return present, torch.from_numpy(codes)


def _tensor(array: Features) -> Tensor:
    """The same memory where it can be shared."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
