"""Training that holds features of source and target together: what is added to the loss of the labelled source.

Each side is normalised by its own batch statistics; those kept for use stay the source's, so that val is judged as
the source is. The distances are in `coral.py` and `adversary.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_ft.transfer.strategy import head_of

Alignment = Callable[[Tensor, Tensor, int], dict[str, Tensor]]


class AlignPenalty(nn.Module):
    """Weighted terms that draw what the head is given for source and for target together.

    What the model makes of the source's views is what its head was given in the forward pass just done.

    Args:
        model: a timm classifier, which is trained; no part of this module.
        next_views: views [B, C, V, V] of the next unlabelled target batch.
        align: (source features, target features, calls before) -> weighted terms by name.
        critic: what `align` trains besides the model, so that its gradients are cleared and clipped with the model's.
    """

    def __init__(
        self, model: nn.Module, *, next_views: Callable[[], Tensor], align: Alignment, critic: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.next_views, self.align, self.critic = next_views, align, critic
        self.num_calls = 0
        self._model = (model,)  # in a tuple, or it would be a part
        self._seen: list[Tensor] = []
        self._hook = head_of(model).register_forward_pre_hook(lambda head, args: self._seen.append(args[0]))

    def forward(self, views_BCVV: Tensor) -> dict[str, Tensor]:
        """Terms of a step; the source's views are those the model has just seen."""
        source = self._seen.pop()
        self._seen.clear()  # what evaluations on val left there
        with kept_statistics(self._model[0]):
            self._model[0](self.next_views())
        terms = self.align(source, self._seen.pop(), self.num_calls)
        self.num_calls += 1
        return terms

    def release(self) -> None:
        """Leave the model without a trace."""
        self._hook.remove()
        self._seen.clear()


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use a batch's statistics as in training, but do not remember them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
