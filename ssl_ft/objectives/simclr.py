"""SimCLR: two views of each image, one encoder pass over both, a projector, and a contrastive loss over all ranks.

The loss itself is in `nt_xent.py`; DCL differs only in that function.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.parts import LossParts


class ContrastiveLoss(Protocol):
    """`nt_xent` or `dcl`."""

    def __call__(self, first_ND: Tensor, second_ND: Tensor, *, temperature: float) -> Tensor:
        """Scalar loss of two [N, D] embeddings."""
        ...


class SimCLR(nn.Module):
    """Contrast of two views (Chen et al. 2020).

    Args:
        encoder: [B, C, V, V] -> [B, D].
        projector: [B, D] -> [B, E].
        views: makes the views.
        loss: `nt_xent` or `dcl`.
        temperature: τ.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        views: ViewMaker,
        loss: ContrastiveLoss,
        temperature: float,
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.views, self.loss, self.temperature = views, loss, temperature

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch."""
        return self.loss_of(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """[2B, D]; both views go through the encoder at once, so batch norm sees them together."""
        images = torch.cat([self.views(batch, view=0), self.views(batch, view=1)])
        features: Tensor = self.encoder(images)
        return features

    def loss_of(self, features_ND: Tensor) -> LossParts:
        """The loss from the features of both views, first ones first."""
        total = contrast(self.projector(features_ND), loss=self.loss, temperature=self.temperature)
        return LossParts(total, {"contrast": total.detach()})


def contrast(embeddings_ND: Tensor, *, loss: ContrastiveLoss, temperature: float) -> Tensor:
    """The loss of embeddings whose first half belongs to the first views and second half to the second."""
    first, second = embeddings_ND.chunk(2)
    return loss(first, second, temperature=temperature)
