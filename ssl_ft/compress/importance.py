"""How much a weight counts: its magnitude, or what the loss would change by without it. Where it goes: `prune_*.py`."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Importance = Literal["magnitude", "taylor"]


def parameter_scores(model: nn.Module, *, importance: Importance) -> dict[str, Tensor]:
    """The score of every number of a model, by name of its parameter.

    Args:
        model: for taylor with gradients, as `add_gradients` leaves them.
        importance: magnitude is |w|; taylor |w · ∂L/∂w|, the first term of the change of the loss without the weight
            (Molchanov et al. 2019, eq. 8, before its square).
    """
    if importance == "magnitude":
        return {name: p.detach().abs() for name, p in model.named_parameters()}
    return {name: (p.detach() * _gradient(p)).abs() for name, p in model.named_parameters()}


def channel_scores(weight_KX: Tensor, gradient_KX: Tensor | None) -> Tensor:
    """The score of each row of a matrix, squared, as float64 [K]: ‖w‖² , or with a gradient (Σ w · ∂L/∂w)².

    The second is Molchanov et al. 2019, eq. 8, for all weights of the row going together.
    """
    if gradient_KX is None:
        return weight_KX.double().square().sum(1)
    return (weight_KX.double() * gradient_KX.double()).sum(1).square()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def add_gradients(
    model: nn.Module, inputs: list[Tensor], *, targets: list[Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Leave in the parameters the gradient of the mean loss over batches, the model being in evaluation mode.

    Args:
        model: float32 [B, C, S, S] -> [B, K].
        inputs: batches.
        targets: of each batch.
        loss: mean over a batch.
    """
    model.eval().requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = None
    total = sum(len(batch) for batch in inputs)
    for batch, target in zip(inputs, targets, strict=True):
        (loss(model(batch), target) * (len(batch) / total)).backward()
