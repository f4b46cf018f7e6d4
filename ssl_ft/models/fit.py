"""Whether an encoder fits the images it is to take, tried before training. Building it is in `encoders.py`."""

from typing import Any

import torch
from torch import nn

from ssl_ft.errors import UserError, said, system_sentence
from ssl_ft.models.encoders import EncoderSpec, family, is_vit, stem_edits


@torch.no_grad()
def check_input(
    encoder: nn.Module, spec: EncoderSpec, *, setting: str = "encoder.name", size_setting: str = "size"
) -> None:
    """Try the encoder on one blank image: most architectures have a smallest size, some take one size alone.

    Args:
        encoder: built from `spec`.
        spec: its description.
        setting: how messages name the setting of the architecture.
        size_setting: and that of the size.

    Raises:
        UserError: it does not take images of this size.
    """
    patch = int(encoder.patch_embed.patch_size[0]) if is_vit(encoder) else 1  # type: ignore[union-attr, index]
    if spec.size % patch:
        raise UserError(
            f"{size_setting}={spec.size} is not a multiple of the {patch} pixels that a patch of {spec.name!r} has; "
            f"choose another {size_setting}=, or set {setting.rpartition('.')[0]}.patch_size"
        )
    try:
        encoder.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    except UserError:
        raise
    except Exception as error:  # what a forward pass of wrong arguments or sizes raises is anything
        if system_sentence(error) is not None:
            raise
        raise UserError(
            f"{setting}={spec.name!r} does not take images of {spec.size} x {spec.size} pixels "
            f"({said(error, most=200)}); choose another {size_setting}= or encoder, a smaller stem_stride, or "
            f"{setting.rpartition('.')[0]}.args={{img_size: {spec.size}}} where it has that"
        ) from error
    finally:
        encoder.train()


def stride_note(encoder: nn.Module, spec: EncoderSpec) -> str | None:
    """A sentence where the encoder shrinks the image to less than one cell, so that its last stages see no place."""
    stages: Any = getattr(encoder, "feature_info", None)
    if not stages or is_vit(encoder):
        return None
    # timm does not know of our edit of a ResNet's stem, whose own stride is 4.
    stride = stages[-1]["reduction"] * (spec.stem_stride or 4) // 4 if stem_edits(spec) else stages[-1]["reduction"]
    if spec.size >= stride:
        return None
    has_stem = family(spec.name) in ("resnet", "convnext") and spec.stem_stride != 1
    advice = "a smaller encoder.stem_stride" if has_stem else "larger images or another encoder"
    return (
        f"the encoder's stride of {stride} pixels is larger than the images ({spec.size}), so its last stages see a "
        f"single cell; {advice} would keep more of them"
    )
