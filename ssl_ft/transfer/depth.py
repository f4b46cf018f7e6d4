"""An encoder's layers from input to head, as names of parameters: what strategies freeze or slow down by depth.

What counts as a layer is timm's own description of each architecture (`group_matcher`); nothing is guessed here.
"""

import re
from typing import Literal

import timm
from timm.models import group_parameters
from torch import nn

from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm
from ssl_ft.transfer.strategy import head_names

Unit = Literal["block", "stage"]


def layers_of(model: nn.Module, *, unit: Unit) -> list[tuple[str, ...]]:
    """Names of the parameters of each layer, input first; each parameter of the encoder is in one, the head in none.

    Layer 0 holds the stem and everything that is added to its output: patch and position embeddings, class and
    register tokens. Norms between the last block and the head belong to the last layer.

    Args:
        model: a timm classifier.
        unit: "stage" makes a layer of each stage of a convnet or hierarchical transformer; "block" of each block.
            Plain transformers have blocks alone.

    Raises:
        UserError: timm does not describe the layers of this architecture.
    """
    head = head_names(model)
    layer_of = _timm_layers(model, unit=unit)
    last_block = max(number for name, number in layer_of.items() if number < layer_of[min(head)])
    layers: list[list[str]] = [[] for _ in range(last_block + 1)]
    for name, number in layer_of.items():
        if name in head:
            continue
        if number > last_block:
            # timm counts all it has no rule for to the head. What the model holds by itself are tokens and embeddings.
            number = last_block if "." in name else 0
        layers[number].append(name)
    return [tuple(layer) for layer in layers if layer]


def _timm_layers(model: nn.Module, *, unit: Unit) -> dict[str, int]:
    """Layer of each parameter as timm counts them, the head last."""
    kind = type(model).__name__
    refusal = (
        f"timm {timm.__version__} does not describe the layers of {kind} from input to head, by which this strategy "
        "goes; take a ResNet, ConvNeXt, ViT or another encoder that has them, or strategy=full, l2sp or probe"
    )
    try:
        matcher = as_timm(model).group_matcher(coarse=unit == "stage")
        layer_of: dict[str, int] = group_parameters(model, matcher, reverse=True)
    except (AttributeError, NotImplementedError, AssertionError, TypeError, re.error) as error:
        raise UserError(refusal) from error
    names = {name for name, _ in model.named_parameters()}
    if set(layer_of) != names or len({layer_of[name] for name in names - head_names(model)}) < 2:
        raise UserError(refusal)
    return layer_of
