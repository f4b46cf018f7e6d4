"""Light decoders that predict patches: a small transformer behind a ViT, a few convolutions behind a feature map.

Shape suffixes: B images, P patches, L visible patches, K values of a patch, D features, E decoder width.
"""

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class TokenDecoder(nn.Module):
    """Predicts every patch from the visible tokens and a learnt token for each hidden place (He et al. 2022, 3).

    Args:
        num_in: D of the tokens.
        width: E, a multiple of `num_heads`.
        depth: transformer blocks.
        num_heads: heads a block.
        num_patches: P, a square number.
        num_out: K.
    """

    places: Tensor

    def __init__(self, num_in: int, *, width: int, depth: int, num_heads: int, num_patches: int, num_out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_in, width)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.hidden_token, std=0.02)
        self.register_buffer("places", sine_places(math.isqrt(num_patches), width=width), persistent=False)
        self.blocks = nn.Sequential(*[Block(width, num_heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, num_out)

    def forward(self, tokens_BLD: Tensor, places_BL: Tensor) -> Tensor:
        """Predictions [B, P, K] from visible tokens [B, L, D] and their patch numbers int64 [B, L]."""
        visible = self.embed(tokens_BLD)
        tokens = self.hidden_token.to(visible.dtype).repeat(len(visible), self.places.shape[0], 1)
        tokens = tokens.scatter(1, places_BL.unsqueeze(2).expand_as(visible), visible)
        predictions: Tensor = self.predict(self.norm(self.blocks(tokens + self.places.to(visible.dtype))))
        return predictions


class MapDecoder(nn.Module):
    """Predicts the pixels under each cell of a feature map (after Xie et al. 2022, "SimMIM": a light head suffices).

    Args:
        num_in: D of the map.
        width: hidden channels.
        cell: side in pixels of the square of the image that one cell of the map stands for.
        channels: C of the image.
    """

    def __init__(self, num_in: int, *, width: int, cell: int, channels: int) -> None:
        super().__init__()
        self.cell = cell
        self.narrow = nn.Conv2d(num_in, width, 1)
        self.mix = nn.Sequential(nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.predict = nn.Conv2d(width, channels * cell * cell, 1)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """Predicted image [B, C, h·cell, w·cell] from a feature map [B, D, h, w]."""
        narrow = self.narrow(map_BDhw)
        return nn.functional.pixel_shuffle(self.predict(narrow + self.mix(narrow)), self.cell)


def sine_places(grid: int, *, width: int) -> Tensor:
    """Fixed two-dimensional sine-cosine positions, float32 [grid², width]; half the width tells the row."""
    quarter = width // 4
    assert width % 4 == 0, f"decoder width {width} must be a multiple of 4"
    rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64).outer(rates)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line.unsqueeze(1).expand(grid, grid, -1)
    columns = line.unsqueeze(0).expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, width).float()
