"""Heads on the earlier layers of a classifier, for its last layer to teach; taken off again when training ends.

After Zhang et al. 2019, "Be your own teacher". Theirs have convolutions of their own and a third loss that draws
features together; these are a norm and a linear map of the mean over places, and have the first two losses alone.
"""

import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.seeding import derive_seed

# Blocks of a plain transformer after which there is a head, as shares of its depth.
_DEPTHS = (0.25, 0.5, 0.75)


class DepthHeads(nn.Module):
    """A head on each earlier stage of a convnet, or after quarters of a ViT's blocks.

    What a layer gave is what the forward pass just done left.

    Args:
        model: a timm classifier, which is trained; no part of this module.
        widths: features of each earlier layer, as `earlier_widths` measures them.
        num_classes: K.
        seed: of the heads' weights.
    """

    def __init__(self, model: nn.Module, *, widths: list[int], num_classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "heads of earlier layers") >> 1)
            self.heads = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes)) for width in widths
            )
        self._seen: dict[int, Tensor] = {}
        self._hooks = _watch(model, self._seen)

    def outputs(self) -> list[Tensor]:
        """Logits [B, K] of each head, the earliest first, for the images the model has just seen."""
        return [head(self._seen[number]) for number, head in enumerate(self.heads)]

    def release(self) -> None:
        """Leave the model without a trace."""
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()


@torch.no_grad()
def earlier_widths(model: nn.Module, images_BCSS: Tensor) -> list[int]:
    """Features of each earlier layer, learnt from a look at images; the model's mode and weights stay as they are.

    Raises:
        UserError: an architecture whose layers are not known here, or with one alone.
    """
    seen: dict[int, Tensor] = {}
    hooks, was_training = _watch(model, seen), model.training
    model.eval()(images_BCSS)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return [seen[number].shape[1] for number in sorted(seen)]


def _watch(model: nn.Module, seen: dict[int, Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep the mean over places, [B, D], of what each earlier layer gives."""

    def keep(number: int, output: Tensor) -> None:
        if output.ndim == 4:
            seen[number] = output.mean((2, 3))
        else:
            prefix = int(getattr(model, "num_prefix_tokens", 0))
            seen[number] = output[:, prefix:].mean(1)

    return [
        layer.register_forward_hook(lambda module, args, output, number=number: keep(number, output))
        for number, layer in enumerate(_earlier_layers(model))
    ]


def _earlier_layers(model: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    if isinstance(model, ResNet):
        layers = [model.layer1, model.layer2, model.layer3]
    elif isinstance(model, ConvNeXt):
        layers = list(model.stages)[:-1]
    elif isinstance(model, VisionTransformer):
        depth = len(model.blocks)
        places = sorted({round(share * depth) for share in _DEPTHS} - {0, depth})
        layers = [model.blocks[place - 1] for place in places]
    if not layers:
        raise UserError(
            "distill.teacher=depth and both are defined for ResNet, ConvNeXt and ViT of two layers or more, not for "
            f"{type(model).__name__}; use distill.teacher=model"
        )
    return layers
