"""The layers of an encoder that take an update or an adapter, found by their names in timm. Building: elsewhere."""

import re
from collections.abc import Mapping

from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_ft.errors import UserError

_FAMILIES = {VisionTransformer: "vit", ConvNeXt: "convnext", ResNet: "resnet"}
Layer = nn.Linear | nn.Conv2d


def layers_named(classifier: nn.Module, patterns: Mapping[str, str], *, strategy: str) -> dict[str, Layer]:
    """The linear layers and convolutions whose whole name matches the pattern of the classifier's family.

    Subclasses are left out: what they compute with their weight is their own affair.

    Raises:
        UserError: the family has no pattern, or no layer matches.
    """
    family = next((name for kind, name in _FAMILIES.items() if isinstance(classifier, kind)), None)
    if family is None or family not in patterns:
        known = ", ".join({"vit": "ViT", "convnext": "ConvNeXt", "resnet": "ResNet"}[name] for name in patterns)
        raise UserError(
            f"strategy={strategy} is defined for {known} encoders, not for {type(classifier).__name__}; "
            "take strategy=full or partial"
        )
    pattern = re.compile(patterns[family])
    found: dict[str, Layer] = {
        name: layer
        for name, layer in classifier.named_modules()
        if pattern.fullmatch(name) and (type(layer) is nn.Linear or type(layer) is nn.Conv2d)
    }
    if not found:
        raise UserError(
            f"strategy={strategy}: none of this {type(classifier).__name__}'s layers is one that it knows; "
            "take strategy=full or partial"
        )
    return found
