"""Which patches are hidden: exact counts, counter-based, one mask an image. Mask polarity: True = hidden.

Shape suffixes: B images, P patches of an image (row by row), K values of a patch (row, column, channel).
"""

import torch
from torch import Tensor

from ssl_ft.seeding import derive_seed, hash_int64


def num_hidden(num_patches: int, *, hidden_share: float) -> int:
    """How many of `num_patches` are hidden: rounded, but at least one hidden and one visible.

    Raises:
        ValueError: fewer than 2 patches cannot be split.
    """
    if num_patches < 2:
        raise ValueError(f"masking needs at least 2 patches an image, here {num_patches}: use smaller patches")
    return min(max(round(num_patches * hidden_share), 1), num_patches - 1)


def sample_mask(
    indices_B: Tensor, *, num_patches: int, hidden_share: float, seed: int, epoch: int, view: int
) -> Tensor:
    """A uniformly drawn mask for each image with exactly `num_hidden` True.

    Args:
        indices_B: int64 [B], the images' numbers in the pool.
        num_patches: P.
        hidden_share: in (0, 1).
        seed: the run's seed.
        epoch: epoch counter.
        view: number of the view.

    Returns:
        bool [B, P], True = hidden.
    """
    count = num_hidden(num_patches, hidden_share=hidden_share)
    words = hash_int64(indices_B, key=derive_seed(seed, "mask", epoch, view), columns=num_patches)
    hidden = words.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(words, dtype=torch.bool).scatter_(1, hidden, True)


def patchify(images_BCHW: Tensor, *, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, P, K]; patches row by row, values ordered (row, column, channel)."""
    batch, channels, height, width = images_BCHW.shape
    grid = images_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BPK: Tensor, *, patch: int, channels: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: [B, P, K] -> [B, C, H, W]."""
    grid = patches_BPK.reshape(-1, height // patch, width // patch, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)


def hide(images_BCHW: Tensor, mask_BP: Tensor, *, patch: int) -> Tensor:
    """The images with hidden patches set to 0 (the mean colour, once images are normalised)."""
    height, width = images_BCHW.shape[2] // patch, images_BCHW.shape[3] // patch
    grid = mask_BP.view(-1, 1, height, 1, width, 1)
    blocks = images_BCHW.reshape(*images_BCHW.shape[:2], height, patch, width, patch)
    return blocks.masked_fill(grid, 0.0).reshape(images_BCHW.shape)
