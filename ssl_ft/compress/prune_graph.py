"""What can be cut of a convnet: channels with every layer that sees them, found by torch-pruning's dependency graph.

Fang et al. 2023, "DepGraph". Which channels count least is decided here, as everywhere in this folder.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_ft.compress.importance import channel_scores
from ssl_ft.compress.prune_weights import is_kept
from ssl_ft.compress.prune_widths import Shears, Width, joint_scores
from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def graph_widths(model: nn.Module, shears: Shears, *, example: Tensor) -> tuple[list[Width], tuple[str, ...]]:
    """The channels of a convnet, those that a residual sum ties together as one.

    Args:
        model: a timm classifier; its widths are bound to this very module.
        shears: how it is to be cut.
        example: [1, C, S, S], an input.

    Raises:
        UserError: torch-pruning is not installed, or the model has layers whose channels mean something by their place.
    """
    _refuse_others(model)
    names = {module: name for name, module in model.named_modules()}
    graph = _build_graph(model, example)
    widths, left = list[Width](), list[str]()
    head = as_timm(model).get_classifier()
    for group in graph.get_all_groups(ignored_layers=[head], root_module_types=list(_LAYERS)):
        layers = _producers(graph, group, names)
        name = " + ".join(layers)
        if not layers or any(is_kept(layer, shears.keep) for layer in layers):
            continue
        why = _why_whole(group, layers, shears)
        if why:
            left.append(f"{name} ({why})")
            continue
        root, function = group[0].dep.target.module, group[0].dep.handler
        widths.append(Width(name, _scores(graph, group, names, shears), partial(_take, graph, root, function)))
    return widths, tuple(left)


def _build_graph(model: nn.Module, example: Tensor) -> Any:  # Any: torch-pruning has no types
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError(
            "prune.kind=channels needs the package torch-pruning for a convnet; pip install '.[compress]'"
        ) from error
    model.requires_grad_(True)
    # Scales that a block holds by itself, along its channels.
    own = [(p, 0) for _, p in _loose(model) if p.ndim == 1]
    with torch.enable_grad():
        return torch_pruning.DependencyGraph().build_dependency(
            model, example_inputs=example, unwrapped_parameters=own or None
        )


def _loose(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are held by no layer or norm."""
    return [
        (f"{name}.{key}", parameter)
        for name, module in model.named_modules()
        if not isinstance(module, (*_LAYERS, *_NORMS))
        for key, parameter in module.named_parameters(recurse=False)
    ]


def _refuse_others(model: nn.Module) -> None:
    attentions = [name for name, module in model.named_modules() if hasattr(module, "num_heads")]
    loose = [name for name, parameter in _loose(model) if parameter.ndim > 1]
    if attentions or loose:
        what = "attention" if attentions else "parameters beside its layers"
        raise UserError(
            f"prune.kind=channels: this {type(model).__name__} has {what} ({', '.join((attentions or loose)[:3])}), "
            "whose channels cannot be taken out here; ResNets, ConvNeXts, other convnets and plain ViTs can be cut. "
            "Take prune.kind=units, or weights"
        )


def _producers(graph: Any, group: Any, names: dict[nn.Module, str]) -> list[str]:
    """Names of the layers that put out the channels of a group, in the order of the model."""
    found = {
        names[dep.target.module]
        for dep, _ in group
        if isinstance(dep.target.module, _LAYERS)
        and graph.is_out_channel_pruning_fn(dep.handler)
        and not _is_depthwise(dep.target.module)
    }
    return [name for name in names.values() if name in found]


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _why_whole(group: Any, layers: list[str], shears: Shears) -> str:
    modules = [dep.target.module for dep, _ in group]
    if any(isinstance(m, nn.Conv2d) and m.groups > 1 and not _is_depthwise(m) for m in modules):
        return "a grouped convolution sees them"
    if any(isinstance(m, nn.GroupNorm) for m in modules):
        return "a group norm runs over them"
    if shears.stream is None and any(isinstance(m, nn.LayerNorm) for m in modules):
        return "a layer norm runs over them; prune.stream=true cuts them all the same"
    return "a residual sum ties them" if shears.stream is False and len(layers) > 1 else ""


def _scores(graph: Any, group: Any, names: dict[nn.Module, str], shears: Shears) -> Tensor:
    """Scores of a group's channels, from the weights that go with each: its filters, norms and what reads it."""
    num_channels = len(group[0].idxs)
    parts = dict[str, Tensor]()
    for item in group.items:
        module = item.dep.target.module
        if not isinstance(module, (*_LAYERS, *_NORMS)) or module.weight is None:
            continue
        is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
        weight, gradient = _matrix(module, module.weight.detach(), is_out), None
        if shears.importance == "taylor" and module.weight.grad is not None:
            gradient = _matrix(module, module.weight.grad, is_out)[item.idxs]
        own = channel_scores(weight[item.idxs], gradient)
        # A flattened map has several inputs for each channel.
        places = torch.as_tensor(item.root_idxs)
        parts[f"{names[module]} {is_out}"] = torch.zeros(num_channels, dtype=own.dtype).index_add_(0, places, own)
    # Sums in the order of names: the graph's own order may differ from process to process.
    return joint_scores([parts[key] for key in sorted(parts)], importance=shears.importance)


def _matrix(module: nn.Module, weight: Tensor, is_out: bool) -> Tensor:
    """A weight, or its gradient, as a row for each channel."""
    if weight.ndim == 1:
        return weight.unsqueeze(1)
    is_row = is_out or _is_depthwise(module)
    return weight.flatten(1) if is_row else weight.transpose(0, 1).flatten(1)


def _take(graph: Any, root: nn.Module, function: Any, gone: list[int]) -> None:
    graph.get_pruning_group(root, function, gone).prune()
