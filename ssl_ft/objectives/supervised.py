"""Cross-entropy on labelled images: what fine-tuning minimises."""

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
    """

    labels_N: Tensor

    def __init__(self, model: nn.Module, labels_N: Tensor, *, views: ViewMaker, label_smoothing: float) -> None:
        super().__init__()
        self.encoder, self.views, self.label_smoothing = model, views, label_smoothing
        self.register_buffer("labels_N", labels_N, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        logits = self.encoder(self.views(batch, view=0))
        targets = self.labels_N[batch.indices_B]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        total = F.cross_entropy(wide, targets, label_smoothing=self.label_smoothing)
        return LossParts(total, {"cross_entropy": total.detach()})
