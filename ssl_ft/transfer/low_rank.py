"""Low-rank updates of a frozen encoder, and merging them: LoRA, DoRA, and LoRA on a 4-bit base (`quantized.py`).

The layers are peft's; which of an encoder's layers get one stands here. What an optimizer does with them is in
`tuned_groups.py`, adapters of our own are in `adapters.py`.
"""

import copy
import re
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm
from ssl_ft.transfer.extras import import_peft
from ssl_ft.transfer.layers import layers_named
from ssl_ft.transfer.quantized import as_plain_linear, is_quantized

# Which layers of a family get an update, by their names in timm. The stem, downsampling, norms and depthwise
# convolutions stay as they are, and so do other grouped convolutions: their filters see few channels, so that a
# low-rank update would hold as many numbers as they do.
TARGETS = {
    "vit": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc\d\w*)",
    "convnext": r"stages\.\d+\.blocks\.\d+\.mlp\.fc\d",
    "resnet": r"layer\d\.\d+\.conv\d",
}
# peft's name for the one set of updates that a model holds here.
_UPDATE = "default"


def low_rank_layers(classifier: nn.Module, *, strategy: str) -> list[str]:
    """Names of the layers that get an update.

    Raises:
        UserError: not a ViT, ConvNeXt or ResNet, or none of its layers fits.
    """
    named = layers_named(classifier, TARGETS, strategy=strategy)
    return [name for name, layer in named.items() if isinstance(layer, nn.Linear) or layer.groups == 1]


def add_low_rank(
    classifier: nn.Module,
    names: list[str],
    *,
    kind: Literal["lora", "dora", "qlora"],
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
) -> None:
    """Freeze the classifier but its head and give layers a low-rank update that starts as nothing; changed in place.

    LoRA (Hu et al. 2021, eq. 3): h = W x + (α / r) B A x, with A at random and B at 0. DoRA (Liu et al. 2024, eq. 5
    and section 4.3): h = m (W + (α / r) B A) x / ‖W + (α / r) B A‖, the norm taken over the inputs of each output and
    held constant in the gradient, m starting at ‖W‖. A convolution's A has the kernel, its B is 1×1.

    Args:
        classifier: a timm model with a head.
        names: its layers, from `low_rank_layers`.
        kind: qlora is LoRA, on layers that are in 4 bits already.
        rank: r.
        alpha: α.
        dropout: share of the update's inputs set to 0 while training.
        seed: of A; torch's generator is left as it was.

    Raises:
        UserError: peft is not installed, or DoRA would divide by a filter's norm of 0.
    """
    peft = import_peft(strategy=kind)
    if kind == "dora":
        _check_norms(classifier, names)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=kind == "dora",
        target_modules="|".join(re.escape(name) for name in names),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, classifier, adapter_name=_UPDATE)
    as_timm(classifier).get_classifier().requires_grad_(True)


def merge_low_rank(classifier: nn.Module) -> nn.Module:
    """The plain timm model that computes the same, as a copy; the classifier given trains on.

    A 4-bit base is widened to its own values in float32 and not rounded again, so that what was trained is kept.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(classifier)
    tuned = [(name, layer) for name, layer in merged.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in tuned:
        merged.set_submodule(name, _merged_layer(layer))
    del merged.peft_config
    return merged.requires_grad_(True)


@torch.no_grad()
def _merged_layer(layer: Any) -> nn.Module:  # Any: peft's layers
    base = layer.get_base_layer()
    if is_quantized(base):
        plain = as_plain_linear(base)
        plain.weight += layer.get_delta_weight(_UPDATE)
        return plain
    layer.merge(safe_merge=True)
    return cast(nn.Module, layer.get_base_layer())


@torch.no_grad()
def _check_norms(classifier: nn.Module, names: list[str]) -> None:
    for name in names:
        weight = cast(Tensor, classifier.get_submodule(name).weight)
        num_dead = int((weight.flatten(1).norm(dim=1) == 0).sum())
        if num_dead:
            raise UserError(
                f"strategy=dora divides by the norm of each filter, and {num_dead} of the encoder's layer {name!r} are "
                "all zero; take strategy=lora, which does not"
            )
