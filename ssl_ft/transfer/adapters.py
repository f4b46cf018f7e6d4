"""Adapters: small linear maps before or beside the layers of a frozen encoder, starting as nothing; and merging them.

Only forms that merge into the layer they sit at are here. A bottleneck with a nonlinearity (Houlsby et al. 2019;
AdaptFormer, Chen et al. 2022) does not, so its model would be none of timm's and load nowhere but here.
"""

import copy

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.models.timm_model import as_timm
from ssl_ft.transfer.layers import Layer, layers_named

# Where adapters sit, by the names of layers in timm: before the layers that read the residual stream of a ViT or
# ConvNeXt, beside the wide convolutions of a ResNet.
PLACES = {
    "vit": r"blocks\.\d+\.(attn\.qkv|mlp\.fc1\w*)",
    "convnext": r"stages\.\d+\.blocks\.\d+\.mlp\.fc1",
    "resnet": r"layer\d\.\d+\.conv\d",
}


class SeriesAdapter(nn.Module):
    """A frozen layer behind a linear bottleneck: W (x + U D x) + b, with U at 0 to begin with.

    The adapter of RepAdapter (Luo et al. 2023) at scale 1 and with one group. It is W + W U D.

    Args:
        base: linear, or a 1×1 convolution in one group.
        width: outputs of D.
    """

    def __init__(self, base: Layer, *, width: int) -> None:
        super().__init__()
        self.base = base
        self.down: Layer
        self.up: Layer
        inputs = base.weight.shape[1]
        if isinstance(base, nn.Linear):
            self.down, self.up = nn.Linear(inputs, width, bias=False), nn.Linear(width, inputs, bias=False)
        else:
            self.down, self.up = nn.Conv2d(inputs, width, 1, bias=False), nn.Conv2d(width, inputs, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ..., in] -> [B, ..., out], or for a convolution [B, in, h, w] -> [B, out, h, w]."""
        out: Tensor = self.base(x + self.up(self.down(x)))
        return out

    @torch.no_grad()
    def merged(self) -> Layer:
        """The base alone, computing the same."""
        weight, down, up = (layer.weight.double().flatten(1) for layer in (self.base, self.down, self.up))
        self.base.weight.copy_((weight + weight @ up @ down).view_as(self.base.weight))
        return self.base


class ParallelAdapter(nn.Module):
    """A frozen convolution beside a 1×1 bottleneck: W * x + U D x, with U at 0 to begin with.

    The parallel adapter of Rebuffi et al. (2018), in the low-rank form to which they compress it. It is the kernel's
    middle tap, W + U D there.

    Args:
        base: a convolution that `_merges_beside` such a one.
        width: outputs of D.
    """

    def __init__(self, base: nn.Conv2d, *, width: int) -> None:
        super().__init__()
        self.base = base
        stride = (base.stride[0], base.stride[1])
        self.down = nn.Conv2d(base.in_channels, width, 1, stride=stride, bias=False)
        self.up = nn.Conv2d(width, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, out, h', w']."""
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The base alone, computing the same."""
        down, up = (layer.weight.double().flatten(1) for layer in (self.down, self.up))
        kernel = self.base.weight
        kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += (up @ down).to(kernel.dtype)
        return self.base


def add_adapters(classifier: nn.Module, *, width: int, seed: int) -> None:
    """Freeze the classifier but its head and put an adapter at each place; changed in place.

    Args:
        classifier: a timm model with a head.
        width: numbers that an adapter passes on.
        seed: of their first maps; torch's generator is left as it was.

    Raises:
        UserError: not a ViT, ConvNeXt or ResNet, or it has no place for one.
    """
    places = layers_named(classifier, PLACES, strategy="adapter")
    is_beside = isinstance(classifier, ResNet)
    if is_beside:
        places = {name: layer for name, layer in places.items() if _merges_beside(layer)}
    if not places:
        raise UserError(
            "strategy=adapter sits beside 3×3 convolutions, and those of this ResNet are grouped: an adapter over all "
            "channels would not merge into them; take strategy=lora"
        )
    classifier.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in places.items():
            form = ParallelAdapter if is_beside else SeriesAdapter
            classifier.set_submodule(name, form(layer, width=width).to(layer.weight))  # type: ignore[arg-type]
    as_timm(classifier).get_classifier().requires_grad_(True)


def merge_adapters(classifier: nn.Module) -> nn.Module:
    """The plain timm model that computes the same, as a copy; the classifier given trains on."""
    merged = copy.deepcopy(classifier)
    found = [(n, m) for n, m in merged.named_modules() if isinstance(m, SeriesAdapter | ParallelAdapter)]
    for name, adapter in found:
        merged.set_submodule(name, adapter.merged())
    return merged.requires_grad_(True)


def _merges_beside(layer: Layer) -> bool:
    """Whether a 1×1 convolution beside this one sees the same pixels as the middle of its kernel."""
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.padding_mode != "zeros":
        return False
    sides = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
    return layer.kernel_size != (1, 1) and all(k % 2 == 1 and p == d * (k // 2) for k, d, p in sides)
