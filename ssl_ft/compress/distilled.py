"""A student's loss: its labels, what a teacher says of the same views, and what its last layer teaches earlier ones.

Losses are pure functions in `distill_losses.py`; the earlier layers' heads are in `depth_heads.py`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ft.compress.depth_heads import DepthHeads
from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.mixing import Mixing, mix
from ssl_ft.objectives.parts import LossParts
from ssl_ft.objectives.target_losses import soft_cross_entropy

Teach = Callable[[Tensor, Tensor], Tensor]
"""(student's logits [B, K], teacher's logits [B, K]) -> scalar."""


class Distilled(nn.Module):
    """m · cross-entropy with the labels + (1 − m) · what the teacher's outputs ask for, of one view of each image.

    Of unlabelled images, whose views go through the student in one pass with the labelled ones, the teacher alone
    speaks. Without a teacher it is the cross-entropy.

    Args:
        model: [B, C, V, V] -> logits [B, K].
        labels_N: int64 [N], class of each image of the pool.
        views: makes the view.
        class_weights_K: [K], of mean one over the images.
        share: m in [0, 1], of the labels in the loss.
        teach: the loss by the teacher's logits.
        teacher: views [B, C, V, V] -> logits [B, K] without gradients; None where the student has none.
        label_smoothing: share of each label spread evenly over the classes.
        mixing: how labelled images are mixed; what the teacher sees is the mixture. None leaves them apart.
        more: gives the views [B, C, V, V] of the next unlabelled batch; None where there are none.
        depth: heads on earlier layers; None where there are none.
        depth_weight: weight of their mean loss.
    """

    labels_N: Tensor
    class_weights_K: Tensor

    def __init__(
        self,
        model: nn.Module,
        labels_N: Tensor,
        *,
        views: ViewMaker,
        class_weights_K: Tensor,
        share: float,
        teach: Teach,
        teacher: Callable[[Tensor], Tensor] | None,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        more: Callable[[], Tensor] | None = None,
        depth: DepthHeads | None = None,
        depth_weight: float = 1.0,
    ) -> None:
        super().__init__()
        assert more is None or teacher is not None, "of unlabelled images a teacher speaks"
        self.encoder, self.views, self.share, self.teach, self.teacher = model, views, share, teach, teacher
        self.label_smoothing, self.mixing, self.more = label_smoothing, mixing, more
        self.depth, self.depth_weight = depth, depth_weight
        self.register_buffer("labels_N", labels_N, persistent=False)
        self.register_buffer("class_weights_K", class_weights_K, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        views = self.views(batch, view=0)
        labels = self.labels_N[batch.indices_B % len(self.labels_N)]
        shares = F.one_hot(labels, len(self.class_weights_K)).to(views.dtype)
        if self.mixing is not None:
            views, shares = mix(views, shares, batch.indices_B, mixing=self.mixing, epoch=batch.epoch)
        num_labelled = len(views)
        if self.more is not None:
            views = torch.cat([views, self.more()])
        logits = _wide(self.encoder(views))
        labelled = self._of_labels(logits[:num_labelled], shares)
        parts = {"cross_entropy": labelled.detach()}
        total = labelled
        if self.teacher is not None:
            taught = self.teach(logits, self.teacher(views))
            parts["distillation"] = taught.detach()
            total = self.share * labelled + (1 - self.share) * taught
        if self.depth is not None:
            early = self._of_depth(self.depth, logits, shares)
            parts["earlier_layers"] = early.detach()
            total = total + self.depth_weight * early
        return LossParts(total, parts)

    def _of_labels(self, logits: Tensor, shares: Tensor) -> Tensor:
        return soft_cross_entropy(
            logits, shares.to(logits.dtype), label_smoothing=self.label_smoothing, class_weights_K=self.class_weights_K
        )

    def _of_depth(self, depth: DepthHeads, logits: Tensor, shares: Tensor) -> Tensor:
        """Mean over the earlier heads of their own m · labels + (1 − m) · the last layer (Zhang et al. 2019, eq. 3)."""
        losses = []
        for early in depth.outputs():
            taught = self.teach(_wide(early), logits)
            losses.append(self.share * self._of_labels(_wide(early), shares) + (1 - self.share) * taught)
        return torch.stack(losses).mean()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
