"""Multinomial logistic regression with an L2 penalty: many problems on the same rows solved together, tensors only.

A problem is a penalty and the rows that count (a fold's, or all). The weights of all problems are stacked, so that two
matrix products a step serve every one of them. Not here: choosing a penalty, users' mistakes, numpy (`probe.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_ft.evaluate.logistic_objective import (
    Design,
    Point,
    Problems,
    dot,
    evaluate,
    first_newton_step,
    preconditioned,
    problems_of,
    with_bias,
    without_common_part,
)

# In float32 down to here, where its rounding (about 1e-7 of a standardised feature) does not yet count; then float64.
_SINGLE_TOLERANCE = 1e-5
# What float32 has not settled by then it never will: float64 goes on from where it stands.
_MAX_STEPS = {torch.float32: 100, torch.float64: 2000}
# What rounding may add to the loss of a step that the slopes call good (float32: 5e-6 seen at a loss of 0.5).
_LOSS_NOISE = {torch.float32: 1e-5, torch.float64: 1e-13}
# Below this many multiplications a step, calls cost more than arithmetic: then float64 alone needs fewer of them.
_SINGLE_WORTH = 2**20
# The solution is asked for to the caller's tolerance; rounding of large features may stop it before, but never here.
_REQUIRED_TOLERANCE = 1e-6
_SMALLEST_STEP = 1e-6
# Pairs of L-BFGS; twenty or thirty saved no step.
_MEMORY = 10
# Unknowns of the problems solved together: their pairs take 2 · 10 times this many floats.
_MAX_UNKNOWNS = 2**22


@dataclass(frozen=True, eq=False)
class Solutions:
    """Solved problems: logits = weights @ ((features − origin) / scale) + bias, with the design's origin and scale.

    Attributes:
        weights: float64 [P, C, D].
        bias: float64 [P, C], −inf for a class that has no row in the problem.
    """

    weights: Tensor
    bias: Tensor


@torch.no_grad()
def solve(
    design: Design,
    labels: Tensor,
    *,
    strengths: Tensor,
    num_classes: int,
    tolerance: Tensor,
    kept: Tensor | None = None,
) -> Solutions:
    """Return the minimum of mean cross-entropy + strength/2 · ‖weights‖² for each of P problems; the bias is free.

    L-BFGS in the eigenbasis of the rows' covariance, where the Hessian is nearly diagonal at every strength: started
    from the first Newton step, preconditioned by (mean of p (1 − p)) · variance + strength, each problem with its own
    step length and its own end. A problem's solution depends on the others by rounding alone. (Starting from the
    solution of a neighbouring strength was tried: it took up to twice the steps where the penalty is weak.)

    Args:
        design: N rows of D features, as from `design_of`.
        labels: int64 [N] in [0, num_classes).
        strengths: float64 [P], > 0.
        num_classes: C.
        tolerance: float64 [P], largest entry of the gradient to stop at (in the eigenbasis). From 1e-5 up a problem may
            be solved in float32; below, its last steps are in float64.
        kept: bool [P, N], the rows that count in each problem, two classes at least; None for all rows.
    """
    width = num_classes * (1 + len(design.variances))
    weights, bias = [], []
    for part in torch.arange(len(strengths)).split(max(1, _MAX_UNKNOWNS // width)):
        problems = problems_of(design, labels, strengths[part], None if kept is None else kept[part], num_classes)
        theta = _solve_together(problems, design, tolerance=tolerance[part])
        along = theta[..., 1:] @ design.axes.T
        weights.append(along if design.basis is None else along @ design.basis.T)
        bias.append(theta[..., 0].masked_fill(~problems.is_present[..., 0], -torch.inf))
    return Solutions(torch.cat(weights), torch.cat(bias))


@torch.no_grad()
def log_losses(weights: Tensor, bias: Tensor, standard: Tensor, labels: Tensor) -> Tensor:
    """Return the summed log-loss of P solutions, float64 [P].

    Args:
        weights: float64 [P, C, D].
        bias: float64 [P, C].
        standard: float64 [M, D], (features − origin) / scale.
        labels: int64 [M].
    """
    num_problems, num_classes, _ = weights.shape
    logits = torch.addmm(bias.view(-1, 1), weights.flatten(0, 1), standard.T).view(num_problems, num_classes, -1)
    right = logits.gather(1, labels.expand(num_problems, 1, -1)).squeeze(1)
    return (logits.logsumexp(dim=1) - right).sum(dim=1)


class _Pairs:
    """The last steps and changes of the gradient, [P, M, C · (1 + R)] each, and their products: L-BFGS's memory."""

    def __init__(self, theta: Tensor) -> None:
        num_problems = len(theta)
        self.steps = theta.new_zeros(num_problems, _MEMORY, theta[0].numel())
        self.changes = torch.zeros_like(self.steps)
        self.products = theta.new_zeros(num_problems, _MEMORY, _MEMORY)
        self.num_added = 0

    def keep(self, index: Tensor) -> None:
        self.steps, self.changes, self.products = self.steps[index], self.changes[index], self.products[index]

    def add(self, step: Tensor, change: Tensor, is_sound: Tensor) -> None:
        """Put a pair in the place of the oldest; where it is not sound, none."""
        slot = self.num_added % _MEMORY
        torch.mul(step.flatten(1), is_sound.unsqueeze(1), out=self.steps[:, slot])
        torch.mul(change.flatten(1), is_sound.unsqueeze(1), out=self.changes[:, slot])
        self.num_added += 1

    def ahead(self, point: Point, problems: Problems, variances: Tensor) -> Tensor:
        """The inverse Hessian that the pairs tell of, times the gradient, [P, C, 1 + R]; called once after each `add`.

        The two loops of L-BFGS as products of matrices (after Byrd, Nocedal and Schnabel 1994, "Representations of
        quasi-Newton matrices", theorem 2.2), so that a step takes a few calls, however many pairs there are.
        """
        slot = (self.num_added - 1) % _MEMORY
        by_age = torch.arange(self.num_added, self.num_added + _MEMORY) % _MEMORY
        gradient = point.gradient.flatten(1)
        along = torch.bmm(self.steps, torch.stack([self.changes[:, slot], gradient], dim=2))
        # Only products of a step with later changes are used: the newest step has none yet.
        self.products[:, :, slot] = along[..., 0]
        products = self.products[:, by_age[:, None], by_age].triu()
        diagonal = products.diagonal(dim1=1, dim2=2)
        # A slot without a pair is all 0: with 1 on the diagonal it takes no part.
        diagonal += (diagonal == 0).to(products.dtype)
        later = torch.linalg.solve_triangular(products, along[:, by_age, 1:], upper=True)
        weights = torch.empty_like(later).index_copy_(1, by_age, later)
        rest = torch.baddbmm(gradient.unsqueeze(2), self.changes.mT, weights, alpha=-1).view_as(point.gradient)
        ahead = preconditioned(rest, problems, point.spread, variances)
        across = torch.bmm(self.changes, ahead.flatten(1).unsqueeze(2))[:, by_age]
        earlier = torch.linalg.solve_triangular(products.mT, diagonal.unsqueeze(2) * later - across, upper=False)
        weights = torch.empty_like(earlier).index_copy_(1, by_age, earlier)
        return torch.baddbmm(ahead.flatten(1).unsqueeze(2), self.steps.mT, weights).view_as(ahead)


def _solve_together(problems: Problems, design: Design, *, tolerance: Tensor) -> Tensor:
    """Unknowns float64 [P, C, 1 + R] along the axes of the design."""
    theta = first_newton_step(problems, design)
    steepest = torch.full_like(tolerance, torch.inf)
    if theta[..., 1:].numel() * len(design.values) > _SINGLE_WORTH:
        found, steepest = _descend(
            theta.float(), problems.to(torch.float32), design, tolerance=tolerance.clamp(min=_SINGLE_TOLERANCE)
        )
        # What rounding added to all classes alike is in no direction that is descended, so it must not stay.
        theta = without_common_part(found.double(), problems)
    left = (steepest > tolerance).nonzero().squeeze(1)
    if len(left):
        found, steepest = _descend(theta[left], problems.take(left), design, tolerance=tolerance[left])
        theta = theta.index_copy(0, left, found)
        is_solved = steepest <= tolerance[left].clamp(min=_REQUIRED_TOLERANCE)
        assert is_solved.all(), f"logistic regression did not converge: {steepest[~is_solved].tolist()}"
    return theta


def _descend(theta: Tensor, problems: Problems, design: Design, *, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Where each problem's gradient fell to the tolerance, or as far as it came, and its gradient's largest entry."""
    variances, noise = with_bias(design.variances).to(theta.dtype), _LOSS_NOISE[theta.dtype]
    found, steepest = theta.clone(), torch.empty_like(tolerance)
    live = torch.arange(len(theta))
    point, pairs = evaluate(theta, problems, design), _Pairs(theta)
    direction = -preconditioned(point.gradient, problems, point.spread, variances)
    length = torch.ones_like(point.loss)
    for number in range(_MAX_STEPS[theta.dtype] + 1):
        steep = point.gradient.abs().amax(dim=(1, 2))
        is_live = (steep > tolerance) & (length > _SMALLEST_STEP) & (number < _MAX_STEPS[theta.dtype])
        if not is_live.all():
            found[live[~is_live]], steepest[live[~is_live]] = point.theta[~is_live], steep[~is_live].double()
            stay = is_live.nonzero().squeeze(1)
            if not len(stay):
                break
            live, direction, length, tolerance = live[stay], direction[stay], length[stay], tolerance[stay]
            point, problems = point.take(stay), problems.take(stay)
            pairs.keep(stay)
        trial = evaluate(point.theta + length.to(theta.dtype).view(-1, 1, 1) * direction, problems, design)
        slope, new_slope = dot(point.gradient, direction), dot(trial.gradient, direction)
        is_good = _is_good(point.loss, trial.loss, length * slope, slope, new_slope, noise)
        # The objective is convex: only rounding can make the slope along a step fall.
        pairs.add(trial.theta - point.theta, trial.gradient - point.gradient, is_good & (new_slope > slope))
        point = trial.where(is_good, point)
        ahead = pairs.ahead(point, problems, variances)
        direction = torch.where(is_good.view(-1, 1, 1), -ahead, direction)
        # A step too long: to where a straight line through the two slopes crosses zero, within reason.
        shorter = length * (slope / (slope - new_slope)).nan_to_num(0.5).clamp(0.1, 0.5)
        length = torch.where(is_good, 1.0, shorter)
    return found, steepest


def _is_good(
    loss: Tensor, new_loss: Tensor, promised: Tensor, slope: Tensor, new_slope: Tensor, noise: float
) -> Tensor:
    """Whether a step lowers the loss enough; near the end, where rounding hides that, the slopes tell it.

    (Hager and Zhang 2005, "A new conjugate gradient method with guaranteed descent", approximate Wolfe conditions.)
    """
    is_lower = new_loss <= loss + 1e-4 * promised
    is_level = new_loss <= loss + noise * (1.0 + loss.abs())
    return is_lower | (is_level & (new_slope <= 0.8 * slope.abs()))
