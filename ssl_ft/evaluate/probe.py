"""The linear probe: multinomial logistic regression with an L2 penalty on standardised features.

The objective is written out in `fit_linear` and minimised to its (unique) solution, so a probe's score depends on the
features and labels alone, not on a learning rate or a number of epochs. Not here: the solver (`logistic.py`), features,
drawing label budgets, scoring. No function of this file is ever handed a test label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from ssl_ft.data.splits import carve_val
from ssl_ft.errors import UserError
from ssl_ft.evaluate.logistic import Solutions, log_losses, solve
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

# Largest entry of the gradient to stop at. Choosing needs a ranking, but of solutions: where the penalty is weak, a
# gradient of 1e-3 is reached long before the weights have grown, and strengths differ by where the solver stopped. As
# the Hessian is at least the strength, a gradient of a share of it bounds the error of a weight by about that share.
# The probe itself: few labels of well separated classes hardly determine the bias, and 1e-9 settles it to five digits.
_CHOOSING_TOLERANCE = 1e-3
_CHOOSING_SHARE = 0.3
_FINAL_TOLERANCE = 1e-9

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
    return _fitted(_prepared(features, labels, num_classes=num_classes, mean=mean, scale=scale), [strength])[0]


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
    solved together on all folds, the stronger half first, then half of the rest and so on; the search ends once the
    loss has risen twice in a row (over-fitting has set in).

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
    prepared = _prepared(features, labels, num_classes=num_classes, mean=mean, scale=scale)
    if val is None:
        return _by_folds(prepared, features, labels, strengths=strengths, seed=seed, folds=folds)
    return _by_val(prepared, *val, strengths=strengths)


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
    prepared = _prepared(features, labels, num_classes=num_classes, mean=mean, scale=scale)
    if len(labels) <= _FOLDS_UP_TO:
        strength = _by_folds(prepared, features, labels, strengths=STRENGTHS, seed=seed, folds=5)
    else:
        fit, val = carve_val(labels, np.arange(len(labels)), seed=seed, draw=0)
        strength = _by_val(prepared.take(fit), features[val], labels[val], strengths=STRENGTHS)
    return _fitted(prepared, [strength])[0]


def probe_draws(
    features: Features,
    labels: Labels,
    draws: Sequence[tuple[Labels, Labels]],
    *,
    num_classes: int,
    mean: Floats,
    scale: Floats,
    strengths: Sequence[float] = STRENGTHS,
) -> list[LinearProbe]:
    """Return a probe of each draw: strength chosen on its val rows, then fitted on its train rows.

    Draws share one preparation of the features, and their last fits one another's passes over them; so this is for
    draws that each train on a good part of the rows. Few rows of many are cheaper on their own: `choose_strength`,
    `fit_linear`.

    Args:
        features: float [N, D], not yet standardised.
        labels: int64 [N] in [0, num_classes).
        draws: (train, val) of each, int64 row numbers.
        num_classes: C.
        mean: float64 [D], as from `standardise`.
        scale: float64 [D], as from `standardise`.
        strengths: What to choose from, each > 0.

    Raises:
        UserError: One class only in a draw, or features that are not finite.
    """
    prepared = _prepared(features, labels, num_classes=num_classes, mean=mean, scale=scale)
    kept = torch.zeros(len(draws), len(labels), dtype=torch.bool)
    chosen = []
    for number, (train, val) in enumerate(draws):
        kept[number, torch.from_numpy(train)] = True
        chosen.append(_by_val(prepared.take(train), features[val], labels[val], strengths=strengths))
    return _fitted(prepared, chosen, kept)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Labelled features as the solver takes them: `classes` are the P among them, `codes` [N] their places in those."""

    design: Design
    codes: Tensor
    classes: Labels
    num_classes: int
    mean: Floats
    scale: Floats

    def take(self, rows: Labels) -> Self:
        index = torch.from_numpy(rows)
        _check_classes(self.classes[np.unique(self.codes[index])], len(rows))
        return replace(self, design=self.design.take(index), codes=self.codes[index])


def _prepared(features: Features, labels: Labels, *, num_classes: int, mean: Floats, scale: Floats) -> _Prepared:
    _check_finite(features, mean=mean, scale=scale)
    classes, codes = np.unique(labels, return_inverse=True)
    assert len(classes), "a probe needs labels"
    assert 0 <= classes[0] <= classes[-1] < num_classes, "labels lie in [0, num_classes)"
    _check_classes(classes, len(labels))
    design = design_of(_tensor(features), _tensor(scale))
    return _Prepared(design, torch.from_numpy(codes), classes, num_classes, mean, scale)


def _fitted(prepared: _Prepared, strengths: Sequence[float], kept: Tensor | None = None) -> list[LinearProbe]:
    """A probe of each strength, on the rows kept for it, bool [P, N], or on all."""
    assert min(strengths) > 0, "the penalty makes the solution unique, so it must be positive"
    classes, mean, scale = prepared.classes, prepared.mean, prepared.scale
    found = solve(
        prepared.design,
        prepared.codes,
        strengths=torch.tensor(strengths, dtype=torch.float64),
        num_classes=len(classes),
        tolerance=torch.full((len(strengths),), _FINAL_TOLERANCE, dtype=torch.float64),
        kept=kept,
    )
    probes = []
    for strength, solved, free in zip(strengths, found.weights.numpy(), found.bias.numpy(), strict=True):
        weights, bias = np.zeros((len(mean), prepared.num_classes)), np.full(prepared.num_classes, -np.inf)
        weights[:, classes] = solved.T
        bias[classes] = free - solved @ ((prepared.design.origin.numpy() - mean) / scale)
        probes.append(LinearProbe(weights=weights, bias=bias, mean=mean, scale=scale, strength=strength))
    return probes


def _by_folds(
    prepared: _Prepared, features: Features, labels: Labels, *, strengths: Sequence[float], seed: int, folds: int
) -> float:
    fold_of = assign_folds(labels, folds=folds, seed=seed)
    is_held = [fold_of == fold for fold in np.unique(fold_of[fold_of >= 0])]
    if not is_held:
        return DEFAULT_STRENGTH
    held_out = [(_tensor(features[held]), prepared.codes[torch.from_numpy(held)]) for held in is_held]
    return _best_strength(prepared, held_out, strengths, kept=~torch.from_numpy(np.stack(is_held)))


def _by_val(prepared: _Prepared, features: Features, labels: Labels, *, strengths: Sequence[float]) -> float:
    is_known = np.isin(labels, prepared.classes[np.unique(prepared.codes)])
    if not is_known.any():
        return DEFAULT_STRENGTH
    _check_finite(features[is_known], mean=prepared.mean, scale=prepared.scale)
    codes = torch.from_numpy(np.searchsorted(prepared.classes, labels[is_known]))
    return _best_strength(prepared, [(_tensor(features[is_known]), codes)], strengths, kept=None)


def _best_strength(
    prepared: _Prepared,
    held_out: list[tuple[Tensor, Tensor]],
    strengths: Sequence[float],
    *,
    kept: Tensor | None,
) -> float:
    """The strength of least loss on what was held out of each part; bool [parts, N] says what was kept in it."""
    ordered = np.sort(np.asarray(strengths, dtype=np.float64))[::-1].copy()
    losses = np.empty(0)
    while len(losses) < len(ordered):
        # Half of those left: the weakest take the most steps, and are seldom needed.
        some = torch.from_numpy(ordered[len(losses) :][: (len(ordered) - len(losses) + 1) // 2])
        all_parts = some.repeat(len(held_out))
        found = solve(
            prepared.design,
            prepared.codes,
            strengths=all_parts,
            num_classes=len(prepared.classes),
            tolerance=(_CHOOSING_SHARE * all_parts).clamp(max=_CHOOSING_TOLERANCE),
            kept=None if kept is None else kept.repeat_interleave(len(some), dim=0),
        )
        losses = np.append(losses, _losses(prepared.design, found, held_out))
        has_risen = np.diff(losses) > 0
        if (has_risen[1:] & has_risen[:-1]).any():
            break
    return float(ordered[losses.argmin()])


def _losses(design: Design, found: Solutions, held_out: list[tuple[Tensor, Tensor]]) -> Floats:
    """Log-loss of each strength summed over all that was held out; solutions go part by part."""
    size = len(found.bias) // len(held_out)
    total = torch.zeros(size, dtype=torch.float64)
    for weights, bias, (rows, codes) in zip(found.weights.split(size), found.bias.split(size), held_out, strict=True):
        for block, known in zip(rows.split(_BLOCK), codes.split(_BLOCK), strict=True):
            total += log_losses(weights, bias, (block.double() - design.origin) / design.scale, known)
    losses: Floats = total.numpy()
    return losses


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


def _check_classes(classes: Labels, num_labels: int) -> None:
    if len(classes) < 2:
        raise UserError(
            f"All {num_labels} labels to learn from are of one class ({classes[0]}): a probe needs two or more."
        )


def _tensor(array: Features) -> Tensor:
    """The same memory where it can be shared."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
