"""Cross-entropy on labelled images, with the penalty of a strategy: what fine-tuning minimises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.mixing import Mixing, mix
from ssl_ft.objectives.parts import LossParts
from ssl_ft.objectives.target_losses import soft_cross_entropy


class Supervised(nn.Module):
    """Mean cross-entropy of one augmented view of each image.

    Args:
        model: [B, C, V, V] -> logits [B, K].
        labels_N: int64 [N], class of each image of the pool.
        views: makes the view.
        label_smoothing: share of each label spread evenly over the classes.
        class_weights_K: [K], of mean one over the images; None weighs all alike.
        mixing: how images are mixed, which needs the weights, be they all one; None leaves images apart.
        penalty: from the views, after the model has seen them, weighted terms by name that are added; None adds none.
    """

    labels_N: Tensor
    class_weights_K: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        labels_N: Tensor,
        *,
        views: ViewMaker,
        label_smoothing: float,
        class_weights_K: Tensor | None = None,
        mixing: Mixing | None = None,
        penalty: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.label_smoothing, self.penalty = model, views, label_smoothing, penalty
        assert mixing is None or class_weights_K is not None, "the weights tell how many classes there are"
        self.mixing = mixing
        self.register_buffer("labels_N", labels_N, persistent=False)
        self.register_buffer("class_weights_K", class_weights_K, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        views = self.views(batch, view=0)
        labels = self.labels_N[batch.indices_B % len(self.labels_N)]
        if self.class_weights_K is None:
            loss = F.cross_entropy(_wide(self.encoder(views)), labels, label_smoothing=self.label_smoothing)
        else:
            views, loss = self._weighted_loss(views, labels, batch, weights_K=self.class_weights_K)
        added = {} if self.penalty is None else self.penalty(views)
        parts = {name: value.detach() for name, value in added.items()}
        return LossParts(sum(added.values(), loss), {"cross_entropy": loss.detach(), **parts})

    def _weighted_loss(
        self, views: Tensor, labels: Tensor, batch: Batch, *, weights_K: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The views that the model saw, mixed or not, and their loss, with classes as shares."""
        shares = F.one_hot(labels, len(weights_K)).to(views.dtype)
        if self.mixing is not None:
            views, shares = mix(views, shares, batch.indices_B, mixing=self.mixing, epoch=batch.epoch)
        logits = _wide(self.encoder(views))
        loss = soft_cross_entropy(
            logits, shares.to(logits.dtype), label_smoothing=self.label_smoothing, class_weights_K=weights_K
        )
        return views, loss


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
