"""What can be cut inside a transformer's blocks without touching its residual stream: hidden neurons and heads.

Each is the same model with those parts zeroed, exactly: nothing but the two layers around them sees them.
"""

import math
from functools import partial

import torch
from timm.layers import Attention, ConvMlp, Mlp
from torch import Tensor, nn

from ssl_ft.compress.importance import Importance, channel_scores
from ssl_ft.compress.prune_weights import is_kept
from ssl_ft.compress.prune_widths import Shears, Width, joint_scores


def hidden_widths(model: nn.Module, shears: Shears) -> tuple[list[Width], tuple[str, ...]]:
    """The hidden neurons of every MLP that is fc1, an activation and fc2; of others, that they stay whole."""
    widths, left = list[Width](), list[str]()
    for name, module in model.named_modules():
        if is_kept(name, shears.keep) or not hasattr(module, "fc1") or not hasattr(module, "fc2"):
            continue
        if type(module) not in (Mlp, ConvMlp) or not isinstance(module.norm, nn.Identity):
            left.append(f"{name} (in a {type(module).__name__} more than two layers see the hidden neurons)")
            continue
        parts = [_rows(module.fc1, shears.importance), _columns(module.fc2, shears.importance)]
        scores = joint_scores(parts, importance=shears.importance)
        widths.append(Width(name, scores, partial(_take_hidden, module)))
    return widths, tuple(left)


def attention_widths(model: nn.Module, shears: Shears) -> tuple[list[Width], tuple[str, ...]]:
    """The heads of every attention, or their dimensions."""
    widths, left = list[Width](), list[str]()
    for name, module in model.named_modules():
        if is_kept(name, shears.keep) or not hasattr(module, "num_heads") or not hasattr(module, "qkv"):
            continue
        if type(module) is not Attention:
            left.append(f"{name} (a {type(module).__name__} is not plain attention)")
        elif module.gate is not None or any(
            not isinstance(norm, nn.Identity) for norm in (module.q_norm, module.k_norm, module.norm)
        ):
            left.append(f"{name} (queries, keys or values are normalised or gated over all dimensions)")
        elif shears.heads == "whole":
            both = torch.stack(_head_scores(module, shears.importance))
            widths.append(Width(name, both.mean((0, 2)), partial(_take_heads, module), is_rounded=False))
        else:
            # The i-th place stands for the dimension of each head that counts i-th least, of its queries and keys, and
            # of its values: heads stay equally long.
            places = torch.stack([scores.sort(dim=1).values for scores in _head_scores(module, shears.importance)])
            widths.append(Width(name, places.mean((0, 1)), partial(_take_dims, module, shears.importance)))
    return widths, tuple(left)


def _head_scores(attention: Attention, importance: Importance) -> tuple[Tensor, Tensor]:
    """Scores [heads, dimensions] of queries with their keys, and of values with what reads them."""
    shape = attention.num_heads, attention.head_dim
    query, key, value = _rows(attention.qkv, importance).view(3, -1)
    reader = _columns(attention.proj, importance)
    return (
        joint_scores([query, key], importance=importance).view(shape),
        joint_scores([value, reader], importance=importance).view(shape),
    )


def _rows(layer: nn.Linear | nn.Conv2d, importance: Importance) -> Tensor:
    """Scores of the outputs of a layer, its bias among their weights."""
    weight, gradient = layer.weight.detach().flatten(1), _flat_gradient(layer)
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().unsqueeze(1)], 1)
        if gradient is not None and layer.bias.grad is not None:
            gradient = torch.cat([gradient, layer.bias.grad.unsqueeze(1)], 1)
    return channel_scores(weight, gradient if importance == "taylor" else None)


def _columns(layer: nn.Linear | nn.Conv2d, importance: Importance) -> Tensor:
    """Scores of the inputs of a layer."""
    gradient = _flat_gradient(layer)
    is_used = importance == "taylor" and gradient is not None
    return channel_scores(layer.weight.detach().flatten(1).T, gradient.T if is_used and gradient is not None else None)


def _flat_gradient(layer: nn.Linear | nn.Conv2d) -> Tensor | None:
    return None if layer.weight.grad is None else layer.weight.grad.flatten(1)


def _rest(size: int, gone: list[int]) -> Tensor:
    is_left = torch.ones(size, dtype=torch.bool)
    is_left[gone] = False
    return is_left.nonzero().flatten()


def keep_rows(layer: nn.Linear | nn.Conv2d, index: Tensor) -> None:
    """Leave a layer the outputs of an index, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[index].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[index].clone())
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(index)
    else:
        layer.out_features = len(index)


def keep_columns(layer: nn.Linear | nn.Conv2d, index: Tensor) -> None:
    """Leave a layer the inputs of an index, in place."""
    layer.weight = nn.Parameter(layer.weight.detach()[:, index].clone())
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = len(index)
    else:
        layer.in_features = len(index)


def _take_hidden(mlp: Mlp | ConvMlp, gone: list[int]) -> None:
    left = _rest(mlp.fc1.weight.shape[0], gone)
    keep_rows(mlp.fc1, left)
    keep_columns(mlp.fc2, left)


def _take_heads(attention: Attention, gone: list[int]) -> None:
    size, dims = attention.num_heads, attention.head_dim
    left = _rest(size, gone)
    columns = torch.arange(size * dims).view(size, dims)[left].flatten()
    _keep_attention(attention, queries=columns, values=columns, num_heads=len(left), head_dim=dims)


@torch.no_grad()
def _take_dims(attention: Attention, importance: Importance, gone: list[int]) -> None:
    """Take the dimensions that count least out of every head, of queries and keys others than of values.

    Attention divides by the root of a head's dimensions; so that it goes on dividing by the root of those it had,
    queries carry the difference.
    """
    heads, dims, count = attention.num_heads, attention.head_dim, len(gone)
    numbers = torch.arange(heads * dims).view(heads, dims)
    kept = [
        numbers.gather(1, scores.sort(dim=1, stable=True).indices[:, count:].sort(dim=1).values).flatten()
        for scores in _head_scores(attention, importance)
    ]
    _keep_attention(attention, queries=kept[0], values=kept[1], num_heads=heads, head_dim=dims - count)
    factor = math.sqrt((dims - count) / dims)
    attention.qkv.weight[: len(kept[0])] *= factor
    if attention.qkv.bias is not None:
        attention.qkv.bias[: len(kept[0])] *= factor


def _keep_attention(attention: Attention, *, queries: Tensor, values: Tensor, num_heads: int, head_dim: int) -> None:
    """Leave an attention the dimensions of two indices into all its heads'."""
    size = attention.attn_dim
    keep_rows(attention.qkv, torch.cat([queries, size + queries, 2 * size + values]))
    keep_columns(attention.proj, values)
    attention.num_heads, attention.head_dim, attention.attn_dim = num_heads, head_dim, num_heads * head_dim
    attention.scale = head_dim**-0.5
