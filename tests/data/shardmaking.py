"""Tar and Parquet shards for tests, written by hand as another program would."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(shade: int, *, side: int = 4) -> bytes:
    """A grey square of one shade."""
    stream = io.BytesIO()
    Image.new("L", (side, side), shade).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar with these files, in this order; a name that ends in a slash is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            data = content.encode() if isinstance(content, str) else content
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shaded_tar(path: Path, shades: range, *, side: int = 4) -> Path:
    """A tar of images KEY.png, of these shades, without labels."""
    return write_tar(path, {f"{shade:05d}.png": png(shade % 256, side=side) for shade in shades})


def sparse_array(path: Path, dtype: str, length: int) -> None:
    """A .npy file of zeros that takes no room on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
