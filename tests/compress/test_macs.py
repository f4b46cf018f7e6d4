"""Multiply-accumulates against what they are by hand: of convolutions, linear layers and attention."""

import timm
import torch
from torch import nn

from ssl_ft.compress.macs import count_macs
from tests.compress.models import VIT, vit


class Net(nn.Module):
    """A convolution, a depthwise one, a grouped one with stride, a linear layer: as timm's models are called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 5, padding=2, groups=8),
            nn.Conv2d(8, 12, 1, stride=2, groups=4),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 16, 7),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(images)
        return outputs


def test_of_convolutions_and_linear_layers():
    wanted = 64 * 8 * 3 * 9 + 64 * 8 * 25 + 16 * 12 * 2 + 12 * 16 * 7
    assert count_macs(Net(), channels=3, size=8) == wanted


def test_of_a_transformer():
    """Tokens n, width d: patches n·3p²d; a block n·3d² (q, k, v), 2·n²·d (products), n·d² (out), 8·n·d² (MLP)."""
    model = vit(class_token=False, mlp_ratio=4)
    n, d, depth = 16, VIT["embed_dim"], VIT["depth"]
    wanted = n * 3 * 16 * d + depth * (12 * n * d * d + 2 * n * n * d) + d * 3
    assert count_macs(model, channels=3, size=16) == wanted


def test_the_model_is_left_as_it_was():
    model = timm.create_model("test_vit", img_size=16, patch_size=4)
    before = model.blocks[0].attn.fused_attn
    count_macs(model, channels=3, size=16)
    assert model.training
    assert model.blocks[0].attn.fused_attn == before
    assert next(model.parameters()).device.type == "cpu"
