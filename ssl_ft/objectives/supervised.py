"""Cross-entropy on labelled images, with the penalty of a strategy: what fine-tuning minimises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.parts import LossParts


class Supervised(nn.Module):
    """Mean cross-entropy of one augmented view of each image.

    Args:
        model: [B, C, V, V] -> logits [B, K].
        labels_N: int64 [N], class of each image of the pool.
        views: makes the view.
        label_smoothing: share of each label spread evenly over the classes.
        penalty: from the views, after the model has seen them, weighted terms by name that are added; None adds none.
    """

    labels_N: Tensor

    def __init__(
        self,
        model: nn.Module,
        labels_N: Tensor,
        *,
        views: ViewMaker,
        label_smoothing: float,
        penalty: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.label_smoothing, self.penalty = model, views, label_smoothing, penalty
        self.register_buffer("labels_N", labels_N, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        views = self.views(batch, view=0)
        logits = self.encoder(views)
        targets = self.labels_N[batch.indices_B]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(wide, targets, label_smoothing=self.label_smoothing)
        added = {} if self.penalty is None else self.penalty(views)
        parts = {name: value.detach() for name, value in added.items()}
        return LossParts(sum(added.values(), loss), {"cross_entropy": loss.detach(), **parts})
