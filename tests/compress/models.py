"""Small timm classifiers, and ways to make every fourth of their parts count nothing: its weights become zero."""

import timm
import torch
from torch import nn

CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (16, 24, 24, 32), "patch_size": 1}
VIT = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3, "global_pool": "avg"}


def classifier(name: str, **args: object) -> nn.Module:
    """In evaluation mode, float64, every weight and statistic at random."""
    model = timm.create_model(name, num_classes=3, **args)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.3, generator=generator)
            if key.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model.double().eval()


def resnet() -> nn.Module:
    return classifier("test_resnet", channels=(16, 16, 24, 32))


def vit(**args: object) -> nn.Module:
    return classifier("test_vit", **{**VIT, **args})


def convnext() -> nn.Module:
    return classifier("convnext_atto", **CONVNEXT)


@torch.no_grad()
def silence_convnet(model: nn.Module, *, every: int = 4) -> None:
    """Zero every fourth channel of all convolutions and norms but the image's own, and what reads them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight[::every] = 0
            if module.in_channels != 3:
                module.weight[:, ::every] = 0
        elif isinstance(module, nn.BatchNorm2d):
            module.weight[::every] = 0
            module.bias[::every] = 0
        elif isinstance(module, nn.Linear):
            module.weight[:, ::every] = 0
        assert "gamma" not in name


@torch.no_grad()
def silence_hidden(model: nn.Module, *, every: int = 4) -> None:
    """Zero every fourth hidden neuron of all MLPs on both sides."""
    for module in model.modules():
        if hasattr(module, "fc1"):
            module.fc1.weight[::every] = 0
            module.fc1.bias[::every] = 0
            module.fc2.weight[:, ::every] = 0


@torch.no_grad()
def silence_dims(model: nn.Module, *, every: int = 4) -> None:
    """Zero every fourth dimension of each head, of values others than of queries and keys."""
    for block in model.blocks:
        attention = block.attn
        shape = 3, attention.num_heads, attention.head_dim
        weight, bias = attention.qkv.weight.view(*shape, -1), attention.qkv.bias.view(shape)
        columns = attention.proj.weight.view(-1, *shape[1:])
        for head in range(shape[1]):
            first = head % every
            weight[:2, head, first::every] = 0
            bias[:2, head, first::every] = 0
            weight[2, head, (first + 1) % every :: every] = 0
            bias[2, head, (first + 1) % every :: every] = 0
            columns[:, head, (first + 1) % every :: every] = 0
