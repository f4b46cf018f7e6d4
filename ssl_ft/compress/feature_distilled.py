"""An encoder taught by an encoder, without labels: a student's features, mapped linearly, held to a teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.parts import LossParts
from ssl_ft.seeding import derive_seed


class FeatureDistilled(nn.Module):
    """The distance of W f + b from t − t̄, with f and t the features of student and teacher of one view of each image.

    The teacher's features come about their mean t̄ over the pool: features after a ReLU are all positive, and a
    constant would agree with them well. W and b are trained along and left out of what is kept (Romero et al. 2015,
    "FitNets", whose regressor this is).

    Args:
        encoder: the student, [B, C, V, V] -> features [B, D].
        views: makes the view.
        teacher: views [B, C, V, V] -> features [B, E] without gradients.
        mean_E: t̄, [E].
        width: D.
        loss: (mapped [B, E], teacher's about their mean [B, E]) -> scalar.
        seed: of the map's weights.
    """

    mean_E: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        views: ViewMaker,
        teacher: Callable[[Tensor], Tensor],
        mean_E: Tensor,
        width: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.teacher, self.loss = encoder, views, teacher, loss
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "map of features") >> 1)
            self.map = nn.Linear(width, len(mean_E), dtype=mean_E.dtype)
        self.register_buffer("mean_E", mean_E, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        views = self.views(batch, view=0)
        mapped = self.map(self.encoder(views))
        wide = mapped if mapped.dtype == torch.float64 else mapped.float()
        loss = self.loss(wide, self.teacher(views).to(wide.dtype) - self.mean_E.to(wide.dtype))
        return LossParts(loss, {"distance": loss.detach()})
