"""Which kind of 8 bits suits a model, told by where its weights are; and what this machine's CPU computes exactly.

Measured on one thread of a CPU with VNNI, images of 224 pixels, against float32 eager: a ResNet-18 is 4.4 times as fast
statically, and 2.7 times slower dynamically, convolutions too; a ViT-tiny 1.9 to 2.4 times as fast dynamically. Its
outputs moved by 3 %; statically by 4 %, and by 35 % where all of its operations were quantized.
"""

import platform
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ssl_ft.errors import UserError

Kind = Literal["dynamic", "static", "qat", "weight_only"]
# A ViT-base has 85 million weights in its linear layers.
_LARGE = 80_000_000


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    Attributes:
        num_convolutions: layers.
        in_convolutions: weights in them.
        num_linear: layers.
        in_linear: weights in them.
    """

    num_convolutions: int
    in_convolutions: int
    num_linear: int
    in_linear: int

    @property
    def is_convnet(self) -> bool:
        """Whether convolutions hold most of them."""
        return self.in_convolutions > self.in_linear


def count_weights(model: nn.Module) -> Weights:
    """Count the weights of a model's layers."""
    convolutions = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    return Weights(len(convolutions), sum(convolutions), len(linear), sum(linear))


def choose_kind(weights: Weights, *, engine: str) -> tuple[Kind, str]:
    """The kind that suits, and why, as a sentence.

    Args:
        weights: of the model.
        engine: "auto", "onnxruntime" or "pt2e", which has the static one alone.
    """
    if engine == "pt2e":
        return "static", "quantized statically: without training, engine=pt2e has no other kind"
    if weights.is_convnet:
        return "static", (
            "quantized statically: convolutions hold most of its weights, and they are faster in 8 bits only where the "
            "ranges of activations are known beforehand"
        )
    if weights.in_linear >= _LARGE:
        return "weight_only", (
            f"weights alone are quantized: its linear layers hold {weights.in_linear / 1e6:.0f} million, and large "
            "transformers have a few activations so large that 8 bits for all would lose the rest"
        )
    return "dynamic", (
        "quantized dynamically: linear layers hold most of its weights, and the ranges of a transformer's activations "
        "differ too much between images to be fixed beforehand"
    )


def check_kind(weights: Weights, kind: Kind, *, name: str) -> None:
    """Refuse a kind that would leave most of the model as it is.

    Raises:
        UserError: as said.
    """
    total = weights.in_linear + weights.in_convolutions
    if not total:
        raise UserError(f"{name} has neither convolutions nor linear layers: nothing of it would be quantized")
    if kind in ("dynamic", "weight_only") and weights.is_convnet:
        what = f"{weights.num_linear} of its {weights.num_linear + weights.num_convolutions} layers"
        raise UserError(
            f"quantize.kind={kind} quantizes linear layers alone: of {name} {what}, "
            f"{weights.in_linear / total:.1%} of the weights. Take quantize.kind=static, or qat, which quantize its "
            "convolutions too"
        )


def needs_reduced_range() -> bool:
    """Whether this CPU adds products of 8-bit numbers in 16 bits, where two full ones no longer fit.

    True of x86 without VNNI. Weights of 7 bits fit.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # an older torch knows of the wider instructions alone
        return not torch.cpu._is_vnni_supported()
    known = capabilities()
    return not (known.get("avx512_vnni") or known.get("avx_vnni"))
