"""Supervised pretraining: cross-entropy of a linear head on the encoder, on the labels of the pool.

Fine-tuning, which trains a classifier as a whole and keeps its head, has `supervised.py`.
"""

import torch
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.cross_entropy import mean_cross_entropy
from ssl_ft.objectives.parts import LossParts


class Classified(nn.Module):
    """Mean cross-entropy of one view of each image; the head is thrown away afterwards.

    Args:
        encoder: [B, C, V, V] -> [B, D].
        head: [B, D] -> logits [B, K].
        labels_N: int64 [N], class of each image of the pool, 0 to K − 1.
        views: makes the view.
    """

    labels_N: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module, labels_N: Tensor, *, views: ViewMaker) -> None:
        super().__init__()
        self.encoder, self.head, self.views = encoder, head, views
        # They belong to the data, not to what is saved.
        self.register_buffer("labels_N", labels_N, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch."""
        logits, targets = self.head(self.encoder(self.views(batch, view=0))), self.labels_N[batch.indices_B]
        total = mean_cross_entropy(logits, targets)
        correct = (logits.detach().argmax(1) == targets).to(torch.float64).mean().to(total.dtype)
        return LossParts(total, {"cross_entropy": total.detach(), "train_accuracy": correct})
