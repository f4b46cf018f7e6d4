"""The gradient of one step: of the whole batch, of its parts in turn, or of its parts with cached features.

Stepping, schedules and logs are in `loop.py`.
"""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_ft import dist
from ssl_ft.objectives.joint import gradient_agreement
from ssl_ft.objectives.parts import Cacheable, LossParts
from ssl_ft.sharded import is_sharded


def wrap(objective: nn.Module, device: torch.device, *, accumulate: int) -> nn.Module:
    """The objective as `backward` wants it: on several ranks one whose gradients are averaged."""
    if dist.world_size() == 1 or is_sharded(objective) or (accumulate > 1 and isinstance(objective, Cacheable)):
        return objective
    # Buffers are equal on all ranks already: batch norm is global. Broadcasting them would cost a collective a step.
    # torch 2.15 gave the switch a new name and warns about the old one, which is the only one before.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, **options)


def backward(
    trained: nn.Module,
    objective: nn.Module,
    batch: Any,
    *,
    accumulate: int,
    autocast: torch.dtype | None,
    is_measured: bool,
    reseed: Callable[[int], None],
) -> tuple[LossParts, dict[str, float]]:
    """Leave the gradient of one batch in the parameters, averaged over ranks.

    Args:
        trained: `wrap(objective)`.
        objective: what is trained.
        batch: this rank's images.
        accumulate: parts the batch is cut into.
        autocast: dtype of mixed precision or None.
        is_measured: compare the gradients of the objective's terms too, unless it is sharded.
        reseed: called with a part's number before its forward pass, so that dropout draws the same a second time.

    Returns:
        The loss, without its graph, and measurements for the log.
    """
    trained.zero_grad(set_to_none=True)
    # In the midst of a step of a sharded objective, its parameters are not what the graph leads to.
    is_measured = is_measured and not is_sharded(objective)
    mixed = _Mixed(next(objective.parameters()).device.type, autocast)
    if accumulate == 1:
        return _backward_parts(trained, objective, [batch], mixed=mixed, is_measured=is_measured)
    if isinstance(objective, Cacheable):
        return _backward_cached(objective, batch.split(accumulate), mixed=mixed, reseed=reseed), {}
    return _backward_parts(trained, objective, batch.split(accumulate), mixed=mixed, is_measured=is_measured)


class _Mixed:
    """Mixed precision to be entered any number of times."""

    def __init__(self, device_type: str, dtype: torch.dtype | None) -> None:
        self.device_type, self.dtype = device_type, dtype

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)


def _backward_parts(
    trained: nn.Module, objective: nn.Module, parts: list[Any], *, mixed: _Mixed, is_measured: bool
) -> tuple[LossParts, dict[str, float]]:
    """Gradients of the mean loss over the parts; the loss returned is that mean."""
    losses, extra = [], {}
    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        waits = isinstance(trained, DistributedDataParallel) and not is_last
        with trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with mixed():
                loss: LossParts = trained(part)
            if is_measured and is_last and len(loss.terms) > 1:
                encoder: nn.Module = objective.encoder  # type: ignore[assignment]
                extra = gradient_agreement(loss.terms, [p for p in encoder.parameters() if p.requires_grad])
            (loss.total / len(parts)).backward()
            losses.append(loss)
    mean = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    return LossParts(torch.stack([loss.total.detach() for loss in losses]).mean(), mean), extra


def _backward_cached(
    objective: Cacheable, parts: list[Any], *, mixed: _Mixed, reseed: Callable[[int], None]
) -> LossParts:
    """The full batch's gradient with the encoder's activations of one part at a time (Gao et al. 2021, "GradCache").

    Features of all parts come first, without graphs. The rest (projector and its batch norm, loss over all ranks) runs
    once on all of them; its gradient at the features is then carried back through the encoder part by part. That is
    the full batch's own gradient as long as the encoder treats every image by itself, which batch norm does not.
    """
    first, second = [], []
    for number, part in enumerate(parts):
        reseed(number)
        with torch.no_grad(), mixed():
            views = objective.features(part).chunk(2)
        first.append(views[0])
        second.append(views[1])
    features = torch.cat([*first, *second]).requires_grad_()
    reseed(len(parts))
    with mixed():
        loss = objective.loss_of(features)
    loss.total.backward()
    assert features.grad is not None, "the loss depends on the features"
    gradients = zip(*(half.split([len(f) for f in first]) for half in features.grad.chunk(2)), strict=True)
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        reseed(number)
        with mixed():
            again = objective.features(part)
        again.backward(torch.cat(gradient))
    found = [p.grad for p in objective.parameters() if p.grad is not None]
    for own, mean in zip(found, dist.average_gradients(found), strict=True):
        own.copy_(mean)
    return LossParts(loss.total.detach(), loss.parts)
