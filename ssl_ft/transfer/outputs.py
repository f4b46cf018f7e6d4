"""A classifier of fewer classes from one of more: rows of its head are kept, all else stays."""

import torch
from torch import nn

from ssl_ft.models.timm_model import as_timm
from ssl_ft.transfer.strategy import head_of


@torch.no_grad()
def first_outputs(model: nn.Module, count: int) -> nn.Module:
    """The classifier itself with its first `count` outputs alone; their logits stay what they were."""
    head = head_of(model)
    assert 1 <= count <= head.out_features, f"{count} of {head.out_features} outputs cannot be kept"
    if count == head.out_features:
        return model
    weight, bias = head.weight[:count].clone(), None if head.bias is None else head.bias[:count].clone()
    as_timm(model).reset_classifier(count)
    kept = head_of(model).to(weight.device, weight.dtype)
    kept.weight.copy_(weight)
    if bias is not None:
        kept.bias.copy_(bias)
    return model
