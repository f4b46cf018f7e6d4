"""Muon: matrices and filters move by their momentum made orthogonal, everything else as AdamW moves it.

Which parameters are which is decided in `optim.parameter_groups`. Not here: schedules, groups.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Jordan et al. 2024, whose five steps start from a looser bound of the largest singular value. Three bring those above
# 1/40 of it to about 1; five trained no better on CIFAR-10 and took a third longer.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 3
# Liu et al. 2025 ("Muon is scalable", eq. 4): with this scale updates are as large as AdamW's, so its rates serve.
_UPDATE_RMS = 0.2
_EPS = 1e-8


class Muon(Optimizer):
    """Momentum orthogonalised by Newton and Schulz's iteration (Jordan et al. 2024), AdamW for the rest.

    Computed in the parameters' own precision, so ranks that hold equal gradients keep equal weights.

    Args:
        groups: each with `params`, `weight_decay` (decoupled) and `is_matrix`; filters [O, I, H, W] count as
            matrices [O, I·H·W].
        rate: learning rate of both kinds.
        momentum: of matrices, Nesterov's form, in [0, 1).
        betas: of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, rate: float, momentum: float, betas: tuple[float, float]
    ) -> None:
        assert all("is_matrix" in group for group in groups), "groups say which are matrices"
        super().__init__(groups, {"lr": rate, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "closures are not used here"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = self._orthogonal if group["is_matrix"] else self._adaptive
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(move(parameter, group), alpha=-group["lr"])

    def _orthogonal(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])  # type: ignore[union-attr]
        update = orthogonalised(ahead.flatten(1))
        scaled: Tensor = update.view(parameter.shape) * (_UPDATE_RMS * max(update.shape) ** 0.5)
        return scaled

    def _adaptive(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None, "checked by step"
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        update: Tensor = mean / (square.sqrt() + _EPS)
        return update


def orthogonalised(matrix_RC: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix_RC` and singular values near 1 (0.7 to 1.2).

    The iteration X ← (a + b·XXᵀ + c·(XXᵀ)²)·X only ever multiplies by polynomials of the first XXᵀ, which commute; so
    it runs on the small Gram matrix and touches the wide one twice.

    Args:
        matrix_RC: float32 or float64 [R, C].

    Returns:
        [R, C] of the same dtype; zeros stay zeros.
    """
    if matrix_RC.shape[0] > matrix_RC.shape[1]:
        return orthogonalised(matrix_RC.T).T
    # Filters behind a norm that starts at zero have no gradient at first.
    unit = matrix_RC / matrix_RC.norm().clamp(min=1e-30)
    gram = unit @ unit.T
    # The fourth root of the sum of their fourth powers bounds the largest singular value, closer than the norm does.
    bound = gram.norm().sqrt().clamp(min=1e-3)
    gram = gram / bound.square()
    a, b, c = _QUINTIC
    product = factor = _polynomial(gram, a, b, c)
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram, a, b, c)
        product = factor @ product
    result: Tensor = (product / bound) @ unit
    return result


def _polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b·G + c·G²."""
    result = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal().add_(a)
    return result
