"""Linear layers whose weights are kept in 4 bits, by bitsandbytes, on a CPU as on CUDA. Their updates: `low_rank.py`.

NF4 (Dettmers et al. 2023, section 3): blocks of 64 weights, each over its largest magnitude, rounded to the nearest of
16 levels between −1 and 1; the magnitudes themselves are kept in 8 bits ("double quantization").
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.transfer.extras import import_bitsandbytes

# Weights in a block of NF4, and half the widest gap between two of its levels, -1 and -0.6962: no weight moves further
# than this share of the largest in its block, but for the rounding of that one to 8 bits.
BLOCK = 64
WIDEST_HALF_GAP = 0.15191


def quantize_layers(classifier: nn.Module, names: list[str]) -> None:
    """Replace linear layers by ones that hold the same weights in NF4; changed in place. Biases stay in float32.

    Raises:
        UserError: bitsandbytes is not installed, or one of the layers is a convolution.
    """
    layers = {name: classifier.get_submodule(name) for name in names}
    if not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        raise UserError(
            f"strategy=qlora keeps linear layers in 4 bits, and {type(classifier).__name__} has convolutions in their "
            "place, for which there is no 4-bit form; take a ViT, or strategy=lora"
        )
    for name, layer in layers.items():
        classifier.set_submodule(name, _quantized(cast(nn.Linear, layer)))


def _quantized(layer: nn.Linear) -> nn.Module:
    bitsandbytes = import_bitsandbytes()
    held = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        # With another, or none, the bias would be cast to the input's type under mixed precision, for good.
        compute_dtype=torch.float32,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    # On CPUs that know bfloat16 it would repack the weights at the first look at val, compute in bfloat16 from then on,
    # and let no gradient through.
    held.support_avx512bf16_for_cpu = False
    weight = layer.weight.detach().float()
    held.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", module=held
    ).to(weight.device)
    held.bias = layer.bias
    return cast(nn.Module, held)


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer's weight is kept in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


@torch.no_grad()
def as_plain_linear(layer: Any) -> nn.Linear:  # Any: bitsandbytes' layer
    """A float32 layer with exactly the values that the 4 bits stand for."""
    bitsandbytes = import_bitsandbytes()
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    values = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(values.float())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain


def base_bytes(classifier: nn.Module) -> int:
    """Bytes of all that does not train, with what is needed to read the weights that are kept in 4 bits."""
    return sum(_bytes_held(p) for p in classifier.parameters() if not p.requires_grad)


def _bytes_held(weight: Tensor) -> int:
    size = weight.numel() * weight.element_size()
    state = getattr(weight, "quant_state", None)
    if state is None:
        return size
    beside = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return size + sum(int(part.numel() * part.element_size()) for part in beside)
