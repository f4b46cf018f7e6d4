"""Multiply-accumulates of a forward pass, counted by PyTorch's own counter on shapes alone: nothing is computed."""

import copy

import torch
from torch import nn


def count_macs(model: nn.Module, *, channels: int, size: int) -> int:
    """Multiply-accumulates that one image costs: of convolutions, linear layers and attention's two products.

    Norms, activations, pooling and additions are not counted, as is usual. Attention is counted as its two products of
    matrices whether or not a kernel fuses them.

    Args:
        model: a timm model.
        channels: of its input.
        size: side of its input.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(model).to("meta").eval()
    for module in shapes.modules():
        # A fused kernel is not counted on every device; the plain products are.
        if type(getattr(module, "fused_attn", None)) is bool:
            module.fused_attn = False  # type: ignore[assignment]
    dtype = next(shapes.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.zeros(1, channels, size, size, device="meta", dtype=dtype))
    return int(counter.get_total_flops()) // 2
