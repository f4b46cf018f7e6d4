"""The objective of penalised logistic regression, its gradient and its curvature, for many problems on the same rows.

The weights of all problems are stacked, so that two matrix products serve every one of them. Not here: the steps that
lead to the minimum (`logistic.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

# Numbers in a block of rows or of their logits, so small that they stay in the cache between the two products; in
# float64 also from the making of a block to its use. Measured: 2^17 to 2^20 and 2^15 to 2^17 are alike.
_MAX_BLOCK = {torch.float32: 2**19, torch.float64: 2**17}
# Rows of up to so many numbers (256 MiB) are kept in float64 too; larger ones are made from the features at each step.
_MAX_DOUBLE = 2**25
# The logit of a class without a row: exp() gives 0, and unlike −inf it stays finite times 0.
_NEVER = -1e30


@dataclass(frozen=True, eq=False)
class Design:
    """Centred rows [N, R] of R = min(N, D) columns, block by block in either precision, and how they are scaled.

    Attributes:
        values: [N, R], row = value − shift in float64.
        shift: float64 [R].
        single: float32 [N, R], the same rows ready made.
        double: float64 [N, R], the same, or None where they would be too large.
        axes: float64 [R, R], orthonormal columns: eigenvectors of the covariance of the scaled rows.
        turns: axes / scale in each precision: weights on the unscaled rows = turn @ weights along the axes.
        variances: float64 [R], along the axes.
        basis: float64 [D, N], orthonormal columns that span the rows where N < D: scaled features = basis @ row.
        origin: float64 [D], the features' mean over these rows.
        scale: float64 [D], what each feature was divided by.
    """

    values: Tensor
    shift: Tensor
    single: Tensor
    double: Tensor | None
    axes: Tensor
    turns: dict[torch.dtype, Tensor]
    variances: Tensor
    basis: Tensor | None
    origin: Tensor
    scale: Tensor

    def rows(self, block: slice, dtype: torch.dtype) -> Tensor:
        if dtype == torch.float32:
            return self.single[block]
        if self.double is not None:
            return self.double[block]
        return self.values[block].to(dtype, copy=True).sub_(self.shift)

    def take(self, rows: Tensor) -> Self:
        """Return some of the rows, int64 [M], with the origin, scale and axes of all."""
        return replace(self, values=self.values[rows], single=self.single[rows], double=None)


@dataclass(frozen=True, eq=False)
class Problems:
    """P problems on one design; floats in the precision of the solving.

    Attributes:
        penalty: [P, 1, 1 + R]: 0 for the bias, then the strength.
        kept: [P, 1, N] of 0 and 1, or None.
        num_rows: float64 [P], rows kept.
        is_present: bool [P, C, 1].
        num_present: int64 [P, 1, 1], classes present.
        class_means: [P, C, 1 + R]: share of the class, and sum over its rows along the axes / num_rows.
    """

    penalty: Tensor
    kept: Tensor | None
    num_rows: Tensor
    is_present: Tensor
    num_present: Tensor
    class_means: Tensor

    def take(self, index: Tensor) -> Self:
        return type(self)(
            penalty=self.penalty[index],
            kept=None if self.kept is None else self.kept[index],
            num_rows=self.num_rows[index],
            is_present=self.is_present[index],
            num_present=self.num_present[index],
            class_means=self.class_means[index],
        )

    def to(self, dtype: torch.dtype) -> Self:
        kept = None if self.kept is None else self.kept.to(dtype)
        return replace(self, penalty=self.penalty.to(dtype), kept=kept, class_means=self.class_means.to(dtype))


@dataclass(frozen=True, eq=False)
class Point:
    """Where the problems stand: unknowns [P, C, 1 + R] (bias first), loss float64 [P], gradient and spread.

    The spread [P, C, 1] is the mean of p (1 − p).
    """

    theta: Tensor
    loss: Tensor
    gradient: Tensor
    spread: Tensor

    def take(self, index: Tensor) -> Self:
        return type(self)(self.theta[index], self.loss[index], self.gradient[index], self.spread[index])

    def where(self, is_mine: Tensor, other: Self) -> Self:
        """This point for the problems named, the other one for the rest."""
        if is_mine.all():
            return self
        wide = is_mine.view(-1, 1, 1)
        return type(self)(
            torch.where(wide, self.theta, other.theta),
            torch.where(is_mine, self.loss, other.loss),
            torch.where(wide, self.gradient, other.gradient),
            torch.where(wide, self.spread, other.spread),
        )


def design_of(features: Tensor, scale: Tensor) -> Design:
    """Return the rows ready for any number of problems.

    Args:
        features: float32 or float64 [N, D] on the CPU, finite; they are centred here and may be far from 0.
        scale: float64 [D], > 0, each feature is divided by it.
    """
    num_rows, num_features = features.shape
    blocks = list(blocks_of(num_rows, num_features, torch.float64))
    origin = torch.stack([features[block].double().sum(dim=0) for block in blocks]).sum(dim=0) / num_rows
    values, shift, stretch, basis = features, origin, scale, None
    if num_rows < num_features:
        # Weights outside the span of the rows cost penalty and change no logit: N unknowns a class are enough.
        basis, triangle = torch.linalg.qr(((features.double() - origin) / scale).T)
        values, shift, stretch = triangle.T, triangle.new_zeros(num_rows), triangle.new_ones(num_rows)
    double = values.double() - shift if values.numel() <= _MAX_DOUBLE else None
    single = torch.empty(values.shape, dtype=torch.float32)
    for block in blocks:
        single[block] = values[block].double() - shift if double is None else double[block]
    # Float32 is enough here: any orthonormal axes give the same solution, good ones give it in fewer steps.
    covariance = (single.T @ single).double() / (num_rows * stretch * stretch.unsqueeze(1))
    variances, axes = torch.linalg.eigh(covariance)
    turn = axes / stretch.unsqueeze(1)
    turns = {dtype: turn.to(dtype) for dtype in (torch.float32, torch.float64)}
    return Design(values, shift, single, double, axes, turns, variances.clamp(min=0.0), basis, origin, scale)


def problems_of(design: Design, labels: Tensor, strengths: Tensor, kept: Tensor | None, num_classes: int) -> Problems:
    classes = torch.arange(num_classes).unsqueeze(1)
    counted = torch.ones(1, 1, len(labels), dtype=torch.float64) if kept is None else kept.double().unsqueeze(1)
    num_rows = counted.sum(dim=(1, 2))
    sums = torch.zeros(len(counted) * num_classes, len(design.variances), dtype=torch.float64)
    shares = torch.zeros(len(counted), num_classes, 1, dtype=torch.float64)
    for block in blocks_of(len(labels), max(sums.shape), torch.float64):
        counts = counted[..., block] * (labels[block] == classes)
        sums.addmm_(counts.flatten(0, 1), design.rows(block, torch.float64))
        shares += counts.sum(dim=2, keepdim=True)
    along = (sums @ design.turns[torch.float64]).view(*shares.shape[:2], -1)
    means = torch.cat([shares, along], dim=2) / num_rows.view(-1, 1, 1)
    penalty = strengths.double().view(-1, 1, 1).repeat(1, 1, 1 + len(design.variances))
    penalty[..., 0] = 0.0
    return Problems(
        penalty=penalty,
        kept=None if kept is None else counted,
        num_rows=num_rows.expand(len(strengths)),
        is_present=(shares > 0).expand(len(strengths), -1, -1),
        num_present=(shares > 0).sum(dim=1, keepdim=True).expand(len(strengths), -1, -1),
        class_means=means.expand(len(strengths), -1, -1),
    )


def evaluate(theta: Tensor, problems: Problems, design: Design) -> Point:
    """Loss and gradient at theta. Targets enter through the class means alone: the blocks see no labels."""
    num_problems, num_classes, _ = theta.shape
    turn = design.turns[theta.dtype]
    stacked = theta[..., 1:].flatten(0, 1) @ turn.T
    bias = theta[..., :1].masked_fill(~problems.is_present, _NEVER).flatten(0, 1)
    pull, loss = torch.zeros_like(stacked), torch.zeros(num_problems, dtype=torch.float64)
    total, squares = torch.zeros_like(theta[..., :1]), torch.zeros_like(theta[..., :1])
    for block in blocks_of(len(design.values), max(stacked.shape), theta.dtype):
        rows = design.rows(block, theta.dtype)
        shares = torch.addmm(bias, stacked, rows.T).view(num_problems, num_classes, -1)
        highest = shares.amax(dim=1, keepdim=True)
        sums = shares.sub_(highest).exp_().sum(dim=1, keepdim=True)
        highest += sums.log()
        if problems.kept is None:
            shares /= sums
        else:
            kept = problems.kept[..., block]
            shares *= kept / sums
            highest *= kept
        loss += highest.sum(dim=(1, 2), dtype=torch.float64)
        total += shares.sum(dim=2, keepdim=True)
        squares += torch.linalg.vector_norm(shares, dim=2, keepdim=True).square()
        pull.addmm_(shares.flatten(0, 1), rows)
    num_rows = problems.num_rows.to(theta.dtype).view(-1, 1, 1)
    gradient = torch.cat([total, (pull @ turn).view(num_problems, num_classes, -1)], dim=2) / num_rows
    push = problems.penalty * theta
    gradient += push - problems.class_means
    loss = loss / problems.num_rows + dot(theta, 0.5 * push - problems.class_means)
    return Point(theta, loss, gradient, (total - squares) / num_rows)


def first_newton_step(problems: Problems, design: Design) -> Tensor:
    """From weights 0 and the classes' shares; there p does not depend on the row, and the class means tell it all."""
    shares, sums = problems.class_means[..., :1], problems.class_means[..., 1:]
    gradient = torch.zeros_like(problems.class_means)
    gradient[..., 1:] = shares * sums.sum(dim=1, keepdim=True) - sums
    theta = -preconditioned(gradient, problems, shares * (1 - shares), with_bias(design.variances))
    log_shares = shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
    theta[..., :1] = without_common_part(log_shares, problems)
    return theta


def preconditioned(gradient: Tensor, problems: Problems, spread: Tensor, variances: Tensor) -> Tensor:
    """Gradient [P, C, 1 + R] divided by an estimate of the Hessian's diagonal, common part of the classes taken out."""
    # p (1 − p) is the diagonal of softmax's Hessian; on vectors that sum to 0 over C equal classes, the eigenvalue is
    # larger by this factor (2 for two classes).
    curvature = spread * (problems.num_present / (problems.num_present - 1)) * variances + problems.penalty
    return without_common_part(gradient / curvature.clamp(min=1e-12), problems)


def without_common_part(values: Tensor, problems: Problems) -> Tensor:
    """Without what is added to all logits alike, which changes nothing; absent classes get 0."""
    values = values * problems.is_present
    common = values.sum(dim=1, keepdim=True) / problems.num_present
    return (values - common) * problems.is_present


def with_bias(variances: Tensor) -> Tensor:
    """Variances [1 + R]: the bias is the weight of a feature that is always 1."""
    return torch.cat([variances.new_ones(1), variances])


def blocks_of(num_rows: int, num_columns: int, dtype: torch.dtype) -> Iterator[slice]:
    """Slices of rows, as long as a block of so many columns may be."""
    size = max(128, _MAX_BLOCK[dtype] // num_columns)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Product of each problem's two parts, [P]."""
    return torch.bmm(left.flatten(1).unsqueeze(1), right.flatten(1).unsqueeze(2)).flatten()
