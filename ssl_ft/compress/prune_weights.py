"""Unstructured pruning: which single weights are set to zero, and how many at which step. Training is elsewhere.

A zero takes as much room and time as any other number; only what is stored or computed with zeros in mind gains by it.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm


def cubic_share(step: int, *, num_steps: int, final: float) -> float:
    """Share that is gone after the 1-based `step` of `num_steps`: much at first, little at last, `final` in the end.

    Zhu & Gupta 2017, eq. 1, with nothing gone before the first step: s = s_f (1 − (1 − t)³), t the share of the steps.
    """
    return final * (1 - (1 - step / num_steps) ** 3)


def prunable_weights(model: nn.Module, *, keep: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers by name, without those of the head.

    Args:
        model: a timm classifier.
        keep: names of modules that stay whole, with all that is in them.

    Raises:
        UserError: nothing is left.
    """
    head = as_timm(model).get_classifier()
    found: dict[str, Tensor] = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not head and not is_kept(name, keep)
    }
    if not found:
        raise UserError(
            f"prune.keep leaves no convolution and no linear layer of this {type(model).__name__} to prune: name fewer"
        )
    return found


def is_kept(name: str, keep: tuple[str, ...]) -> bool:
    """Whether a module is one of those named, or lies in one."""
    return any(name == each or name.startswith(f"{each}.") for each in keep)


@torch.no_grad()
def lowest_masks(scores: Mapping[str, Tensor], *, share: float, scope: Literal["global", "local"]) -> dict[str, Tensor]:
    """Masks, True where a weight goes: exactly round(share · count) of them, those of the lowest score.

    Ties go by position, first to last. A score of 0 is the lowest there is, so what is gone stays gone.

    Args:
        scores: of each weight, not negative.
        share: in (0, 1).
        scope: global counts all tensors together, local each by itself.
    """
    if scope == "local":
        return {name: _lowest(score.flatten(), share).view(score.shape) for name, score in scores.items()}
    joined = _lowest(torch.cat([score.flatten() for score in scores.values()]), share)
    parts = joined.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _lowest(scores: Tensor, share: float) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[scores.sort(stable=True).indices[: round(share * scores.numel())]] = True
    return mask


@torch.no_grad()
def zero(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights to zero, in place."""
    own = dict(model.named_parameters())
    for name, mask in masks.items():
        own[name].masked_fill_(mask.to(own[name].device), 0.0)
