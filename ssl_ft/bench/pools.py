"""The images a benchmark reads: the user's own where named, else smooth noise, so that nothing needs to be fetched."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ssl_ft.build.data import build_store, look_at, open_data, pool_of
from ssl_ft.config import DataSettings
from ssl_ft.data.source import Source
from ssl_ft.data.store import ImageStore

# The size and quality of photos as they are passed around in image sets.
_PHOTO_HEIGHT, _PHOTO_WIDTH, _PHOTO_QUALITY = 375, 500, 90
_GRAIN = 6.0  # keeps the files near 100 kB, as photos of that size are


def smooth_noise(count: int, *, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft blobs with a little grain, uint8 [count, height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, height // 8), max(2, width // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    grain = _GRAIN * torch.randn(smooth.shape, generator=generator)
    pixels = (255 * smooth + grain).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def open_pool(data: str | None, *, size: int, count: int) -> ImageStore:
    """At most `count` colour images decoded in memory for an input of `size`: those at `data`, or as much noise.

    Raises:
        UserError: nothing readable at `data`.
    """
    settings = DataSettings(path=data or "noise", limit=count, channels=3)
    # Photos are kept larger than small images are, relative to the views that are cut out of them.
    side = size if size <= 64 else round(1.25 * size)
    pool = _noise_source(count, side=side) if data is None else pool_of(open_data(settings), settings)[0]
    return build_store(pool, settings, kind=look_at(pool), channels=3, size=size, seed=0, run=Path())


def images_of(store: ImageStore) -> NDArray[np.uint8]:
    """All images of a store, uint8 [N, S, S, 3]."""
    pixels, _ = store.fetch(torch.arange(len(store)))
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def stored_images(data: str | None, *, count: int = 1000) -> list[bytes | NDArray[np.generic]]:
    """At most `count` images as they are stored at `data`, files or arrays, or as many JPEGs of noise.

    Raises:
        UserError: nothing readable at `data`.
    """
    if data is not None:
        source = open_data(DataSettings(path=data))
        return [source.read(index) for index in source.sample(count).tolist()]
    return [_jpeg(pixels) for pixels in smooth_noise(count, height=32, width=32)]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_PHOTO_QUALITY)
    return stream.getvalue()


def _noise_source(count: int, *, side: int) -> Source:
    images = smooth_noise(count, height=side, width=side)
    return Source(
        kind="array",
        location="noise",
        names=[f"noise {number}" for number in range(count)],
        read=lambda index: images[index],
        evidence=lambda index: bytes(8),
    )


@contextmanager
def photo_folder(photos: str | None, *, count: int = 128) -> Iterator[Path]:
    """A folder whose single class folder holds the user's photos, or as many JPEGs of noise; gone afterwards.

    `ImageFolder` insists on class folders; with the photos linked in as one class, both sides read the same files.
    """
    with TemporaryDirectory(prefix="ssl-ft-bench-") as place:
        inner = Path(place) / "all"
        if photos is not None:
            inner.symlink_to(Path(photos).expanduser().resolve(), target_is_directory=True)
        else:
            inner.mkdir()
            for number in range(count):
                pixels = smooth_noise(1, height=_PHOTO_HEIGHT, width=_PHOTO_WIDTH, seed=number)[0]
                Image.fromarray(pixels).save(inner / f"{number:04}.jpg", quality=_PHOTO_QUALITY)
        yield Path(place)
