"""Small timm classifiers of every family in which each weight counts: no branch is switched off at the start."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssl_ft.transfer.adapters import add_adapters, merge_adapters
from ssl_ft.transfer.low_rank import add_low_rank, low_rank_layers, merge_low_rank

SIDE, CLASSES = 32, 5
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("test_vit", {"img_size": SIDE, "patch_size": 8, "depth": 2}),
    "convnext": ("test_convnext", {}),
    "convnext-conv": ("test_convnext", {"conv_mlp": True}),
    "resnet": ("test_resnet", {"zero_init_last": False}),
}


def plain(family: str) -> nn.Module:
    """timm's own module, weights fresh."""
    name, args = FAMILIES[family]
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **args)
    return model


def classifier_of(family: str, *, seed: int = 0) -> nn.Module:
    """Weights at random; layer scales about 1 and batch norms with statistics of their own, as training leaves them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = plain(family)
        for name, tensor in model.state_dict().items():
            if name.endswith(("gamma", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
    return model.eval()


def images(count: int = 2, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def tune(model: nn.Module, kind: str, *, seed: int = 3) -> Callable[[nn.Module], nn.Module]:
    """Add what the strategy adds; gives what merges it."""
    if kind == "adapter":
        add_adapters(model, width=4, seed=seed)
        return merge_adapters
    names = low_rank_layers(model, strategy=kind)
    add_low_rank(model, names, kind=kind, rank=4, alpha=8.0, dropout=0.0, seed=seed)  # type: ignore[arg-type]
    return merge_low_rank


@torch.no_grad()
def move(model: nn.Module, *, by: float = 0.05, seed: int = 4) -> None:
    """Shift all that a training would move, as far as one might."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
