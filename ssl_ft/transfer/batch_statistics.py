"""Adaptive batch norm: the statistics of a network's batch norms re-estimated exactly on other images.

Li et al. 2016, "Revisiting batch normalization for practical domain adaptation". No label is needed, no weight moves.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Reached(Exception):  # noqa: N818 - no error: the layer asked for has seen its input
    """Ends a forward pass at the layer whose input was wanted."""


@torch.no_grad()
def adapt_batch_norm(model: nn.Module, blocks: Callable[[], Iterable[Tensor]]) -> int:
    """Give every batch norm the mean and variance that its input has over all images, in place.

    Layer by layer in the order of the forward pass: each layer's input is that of a network whose layers before are
    done, as it will be in use. So the network computes what it would in training mode on one batch of all images
    (whose variance divides by their number), whatever the size of the blocks; it costs a pass up to each layer.

    Args:
        model: with batch norms that keep statistics; left in evaluation mode.
        blocks: gives all the model's inputs anew, float [B, C, S, S] each, on the model's device.

    Returns:
        The number of layers adapted.
    """
    layers = _in_order(model.eval(), next(iter(blocks())))
    assert layers, "only networks with batch norm are adapted"
    for layer in layers:
        mean, variance = _moments(model, layer, blocks)
        assert layer.running_mean is not None, "only layers with statistics are listed"
        assert layer.running_var is not None, "only layers with statistics are listed"
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return len(layers)


def _in_order(model: nn.Module, block: Tensor) -> list[_BatchNorm]:
    """Batch norms with statistics in the order in which a forward pass comes to them."""
    found: list[_BatchNorm] = []

    def note(module: nn.Module, args: Any) -> None:
        if module not in found:
            found.append(module)  # type: ignore[arg-type]

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        model(block[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _moments(model: nn.Module, layer: _BatchNorm, blocks: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of the layer's input over all images, float64 [C] each."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    hook = layer.register_forward_pre_hook(stop)
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    try:
        for block in blocks():
            with contextlib.suppress(_Reached):
                model(block)
            own = seen.pop().double().transpose(0, 1).flatten(1)
            own_mean = own.mean(1)
            own_squares = (own - own_mean.unsqueeze(1)).square().sum(1)
            if not count:
                count, mean, squares = own.shape[1], own_mean, own_squares
                continue
            # Chan, Golub and LeVeque 1979: blocks joined about their own means, so that nothing cancels.
            total, gap = count + own.shape[1], own_mean - mean
            mean = mean + gap * own.shape[1] / total
            squares = squares + own_squares + gap.square() * count * own.shape[1] / total
            count = total
    finally:
        hook.remove()
    return mean, squares / count
