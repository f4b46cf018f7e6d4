"""L2-SP: weights that come from a source are held near it, rather than near zero (Li, Grandvalet & Davoine 2018)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def l2sp(weights: Sequence[Tensor], source: Sequence[Tensor], *, strength: float) -> Tensor:
    """λ/2 · Σ ‖w − wˢ‖² over all tensors (Li et al. 2018, eq. 2, first term), a scalar.

    Args:
        weights: the tensors that move.
        source: where each of them started, of the same shapes.
        strength: λ.
    """
    return strength / 2 * torch.stack([(w - s).square().sum() for w, s in zip(weights, source, strict=True)]).sum()


@torch.no_grad()
def pull(weights: Sequence[Tensor], source: Sequence[Tensor], *, amount: float) -> None:
    """Move weights towards their source, in place: w ← wˢ + (w − wˢ) / (1 + amount).

    With amount = rate · λ this is the proximal step of `l2sp`, which minimises l2sp(w) + ‖w − w₀‖² / (2 · rate). It is
    apart from the gradient for the reason AdamW's decay is (Loshchilov & Hutter 2019): Adam would divide the penalty's
    gradient by its own size, so that λ would hardly matter. And it is right at any λ: at 0 nothing happens, at infinity
    the weights are the source's, where a step along the gradient would overshoot.

    Args:
        weights: the tensors that move.
        source: where each of them started.
        amount: learning rate times λ, >= 0.
    """
    # lerp is exact at both ends, where wˢ + (w − wˢ) would round.
    share = 1.0 if math.isinf(amount) else amount / (1 + amount)
    for w, s in zip(weights, source, strict=True):
        w.lerp_(s, share)
