"""Small pools of images in memory for tests that need a store or a batch; nothing is written to disk."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.data.batches import Batch, ViewMaker
from ssl_ft.data.source import Source
from ssl_ft.data.store import DecodeOptions, ImageStore
from ssl_ft.data.views import ViewRecipe


def noise_images(count: int, *, side: int = 12, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [count, side, side, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def source_of(images: Sequence[NDArray[np.uint8] | bytes], *, labels: NDArray[np.int64] | None = None) -> Source:
    """A source that hands out the given arrays or encoded files."""
    classes = () if labels is None else tuple(f"class {number}" for number in range(int(labels.max()) + 1))
    return Source(
        kind="array",
        location="memory",
        names=[f"image {number}" for number in range(len(images))],
        read=lambda index: images[index],
        evidence=lambda index: bytes([index % 256]),
        labels=labels,
        class_names=classes,
    )


def store_of(images: NDArray[np.uint8], *, is_decoded: bool = True, workers: int = 2) -> ImageStore:
    """A store of square arrays [N, S, S, C] at their own size."""
    options = DecodeOptions(images.shape[3], images.shape[1], workers=workers)
    return ImageStore(source_of(list(images)), options, seed=0, is_decoded=is_decoded)


def batch_of(count: int, *, side: int = 12, channels: int = 3, seed: int = 0, epoch: int = 0) -> Batch:
    """Random images whose numbers in the pool are not their places in the batch."""
    images = torch.from_numpy(noise_images(count, side=side, channels=channels, seed=seed)).permute(0, 3, 1, 2)
    aspects = torch.linspace(0.7, 1.4, count)
    return Batch(images.contiguous(), aspects, torch.arange(count) * 7 + 3, epoch)


def view_maker(size: int, *, channels: int = 3, dtype: torch.dtype = torch.float64) -> ViewMaker:
    """Random views with every kind of change, normalised by unequal means."""
    mean = tuple(0.4 + 0.05 * channel for channel in range(channels))
    std = tuple(0.2 + 0.05 * channel for channel in range(channels))
    return ViewMaker(ViewRecipe(size=size, blur=0.5), mean, std, seed=5, dtype=dtype)
