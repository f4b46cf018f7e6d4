"""Features held near those of the frozen source: its formula, and the penalty that computes it beside training.

The formula is the regulariser λ‖f − fˢ‖ between functions rather than weights (as in DELTA, Li et al. 2019, but on the
features the head sees alone).
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_ft.transfer.aligned import kept_statistics
from ssl_ft.transfer.strategy import head_of


def feature_distance(features_BD: Tensor, source_BD: Tensor) -> Tensor:
    """Σ ‖f − fˢ‖² / Σ ‖fˢ‖², sums over the images of a batch, in float32 at least; a scalar >= 0.

    It has no unit, so that the same λ means the same for every encoder: 1 is as far as the source is from zero.

    Args:
        features_BD: of the model that is trained.
        source_BD: of the frozen source on the same views; no gradient reaches it.
    """
    wide = features_BD if features_BD.dtype == torch.float64 else features_BD.float()
    fixed = source_BD.detach().to(wide.dtype)
    smallest = torch.finfo(wide.dtype).tiny
    return (wide - fixed).square().sum() / fixed.square().sum().clamp(min=smallest)


class DistancePenalty:
    """The weighted distance on the views of a step, and on unlabelled images where there are some.

    What the model makes of the labelled views is what its head was given in the forward pass just done.

    Args:
        model: a timm classifier, which is trained.
        source: the encoder as it was; kept as a copy in evaluation mode.
        weight: λ.
        more: gives the views [B, C, V, V] of the next unlabelled batch; None for the labelled ones alone.
    """

    def __init__(
        self, model: nn.Module, source: nn.Module, *, weight: float, more: Callable[[], Tensor] | None = None
    ) -> None:
        self.model, self.weight, self.more = model, weight, more
        self.source = copy.deepcopy(source).eval().requires_grad_(False)
        self._seen: Tensor | None = None
        self._hook = head_of(model).register_forward_pre_hook(self._note)

    def __call__(self, views_BCVV: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name."""
        terms = {"feature_distance": self._distance(views_BCVV)}
        if self.more is not None:
            others = self.more()
            with kept_statistics(self.model):  # batch norms are to remember the labelled images alone
                self.model(others)
            terms["unlabelled_distance"] = self._distance(others)
        return terms

    def release(self) -> None:
        """Leave the model without a trace."""
        self._hook.remove()
        self._seen = None

    def _distance(self, views_BCVV: Tensor) -> Tensor:
        """λ times the distance on the views that the model has just seen."""
        assert self._seen is not None, "the model has seen the views"
        seen, self._seen = self._seen, None
        with torch.no_grad():
            fixed: Tensor = self.source.to(views_BCVV.device)(views_BCVV)
        return self.weight * feature_distance(seen, fixed)

    def _note(self, head: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._seen = args[0]
