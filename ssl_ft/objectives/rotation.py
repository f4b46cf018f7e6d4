"""Rotation: which of four quarter turns was an image given? All four turns of every image are in the batch.

Views that are turned at random themselves are refused by `build/objectives.py`. Shape suffixes: B images, V side.
"""

import torch
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.cross_entropy import mean_cross_entropy
from ssl_ft.objectives.parts import LossParts

NUM_TURNS = 4


class Rotation(nn.Module):
    """Prediction of quarter turns (Gidaris et al. 2018, "Unsupervised representation learning by predicting image
    rotations", eq. 1 and 2).

    One view of each image is taken and turned by 0, 90, 180 and 270 degrees; the loss is the mean cross-entropy over
    the 4B turned views, which is their mean over images of the mean over turns. The paper's classifier is a part of
    its network; here it is one linear layer on the features, thrown away afterwards.

    Args:
        encoder: [B, C, V, V] -> [B, D].
        head: [B, D] -> logits [B, 4].
        views: makes the view; neither quarter turns nor upside-down flips among its changes.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, views: ViewMaker) -> None:
        super().__init__()
        self.encoder, self.head, self.views = encoder, head, views

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch; all turns go through the encoder at once, so batch norm sees them together."""
        turned = turns(self.views(batch, view=0))
        targets = torch.arange(NUM_TURNS, device=turned.device).repeat_interleave(len(batch.indices_B))
        logits = self.head(self.encoder(turned))
        total = mean_cross_entropy(logits, targets)
        correct = (logits.detach().argmax(1) == targets).double().mean().to(total.dtype)
        return LossParts(total, {"rotation": total.detach(), "rotation_accuracy": correct})


def turns(views_BCVV: Tensor) -> Tensor:
    """The views [4B, C, V, V] turned by 0, 1, 2 and 3 quarters against the clock: pixels change places, nothing else.

    The first B are the views as they are. The memory layout is kept.
    """
    return torch.cat([torch.rot90(views_BCVV, turn, (2, 3)) for turn in range(NUM_TURNS)]).contiguous(
        memory_format=torch.channels_last
        if views_BCVV.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
