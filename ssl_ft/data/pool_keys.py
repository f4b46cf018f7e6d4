"""Digests of a pool's pixels beside its run, for later stages to look for test images among them.

What a test image in a pool means for a run is said in `handover`.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft import dist
from ssl_ft.checkpoint import write_atomically
from ssl_ft.data.duplicates import content_keys
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError


@dataclass(frozen=True, eq=False)
class PoolKeys:
    """Digests of images' pixels.

    Attributes:
        pixels: uint64 [N, 2]; zeros where an image could not be read.
        names: str [N].
        white_level: what counted as white when they were made.
    """

    pixels: NDArray[np.uint64]
    names: NDArray[np.str_]
    white_level: int


def pixel_digests(source: Source, *, workers: int, white_level: int, max_pixels: int) -> NDArray[np.uint64]:
    """uint64 [N, 2] of all images, zeros where damaged. Every rank must call it, reads its share, and gets them all."""
    ranks = dist.world_size()
    share = source if ranks == 1 else source.subset(np.arange(dist.rank(), len(source), ranks))
    own = content_keys(share, workers=workers, white_level=white_level, max_pixels=max_pixels).pixels
    digests = np.zeros((len(source), 2), np.uint64)
    for rank, part in enumerate(dist.gather_objects(own)):
        digests[rank::ranks] = part
    return digests


def write_pool_keys(path: Path, keys: PoolKeys) -> None:
    """Write them, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, pixels=keys.pixels, names=keys.names, white_level=np.array(keys.white_level))

    write_atomically(path, write)


def read_pool_keys(path: Path) -> PoolKeys:
    """What `write_pool_keys` wrote.

    Raises:
        UserError: it is not there, damaged, or another program's.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as known:
            # Files from before there was a choice have none.
            level = int(known["white_level"]) if "white_level" in known else 65535
            keys = PoolKeys(known["pixels"], known["names"], level)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}") from error
    except (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if keys.pixels.dtype != np.uint64 or keys.pixels.shape != (keys.names.size, 2) or keys.names.ndim != 1:
        raise UserError(f"{path} holds {keys.pixels.dtype} {keys.pixels.shape} for {keys.names.size} images")
    return keys
