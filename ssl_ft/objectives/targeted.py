"""A loss on multi-label or regression targets, with the penalty of a strategy: what fine-tuning minimises for these.

Classes have `Supervised`; the losses themselves are pure functions in `target_losses.py`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.objectives.mixing import Mixing, mix
from ssl_ft.objectives.parts import LossParts


class Targeted(nn.Module):
    """The loss of one augmented, perhaps mixed view of each image.

    Args:
        model: [B, C, V, V] -> outputs [B, K].
        targets_NK: float32 [N, K] of each image of the pool, NaN = missing; of numbers, standardised.
        views: makes the view.
        loss: (outputs [B, K], targets [B, K]) -> scalar.
        name: of the loss, for the log.
        mixing: how images are mixed; None leaves them apart.
        penalty: from the views, after the model has seen them, weighted terms by name that are added; None adds none.
    """

    targets_NK: Tensor

    def __init__(
        self,
        model: nn.Module,
        targets_NK: Tensor,
        *,
        views: ViewMaker,
        loss: Callable[[Tensor, Tensor], Tensor],
        name: str,
        mixing: Mixing | None = None,
        penalty: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.views, self.loss, self.name = model, views, loss, name
        self.mixing, self.penalty = mixing, penalty
        self.register_buffer("targets_NK", targets_NK, persistent=False)

    def forward(self, batch: Batch) -> LossParts:
        """Loss of one batch, in float32 at least."""
        views = self.views(batch, view=0)
        targets = self.targets_NK[batch.indices_B % len(self.targets_NK)]
        if self.mixing is not None:
            views, targets = mix(views, targets, batch.indices_B, mixing=self.mixing, epoch=batch.epoch)
        outputs = self.encoder(views)
        wide = outputs if outputs.dtype.itemsize == 8 else outputs.float()
        loss = self.loss(wide, targets.to(wide.dtype))
        added = {} if self.penalty is None else self.penalty(views)
        parts = {name: value.detach() for name, value in added.items()}
        return LossParts(sum(added.values(), loss), {self.name: loss.detach(), **parts})
