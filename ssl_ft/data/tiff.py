"""TIFF images with more bands than Pillow keeps (multispectral ones), read into arrays.

Only what such files commonly are: strips or tiles, uncompressed or deflated. Everything else is named in the
error, and ordinary grey and colour TIFFs are left to Pillow.
"""

import io
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

# Tag numbers, as the TIFF 6.0 specification gives them.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 284, 317, 322, 323
_TILE_OFFSETS, _TILE_COUNTS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339

_COLOUR_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation
_DEFLATE = (8, 32946)
_DTYPES = {(8, 1): "u1", (16, 1): "u2", (32, 3): "f4"}  # by (bits, sample format)


@dataclass(frozen=True)
class BandLayout:
    """Size of a many-band TIFF and the directory entries that say where its pixels are."""

    width: int
    height: int
    bands: int
    dtype: np.dtype[np.generic]
    tags: TiffImagePlugin.ImageFileDirectory_v2


def band_layout(raw: bytes) -> BandLayout | None:
    """Layout of the first image of a TIFF where Pillow would drop bands or refuse; None where Pillow reads all of it.

    Raises:
        ValueError: a kind of many-band TIFF that is not read here; the message says which.
    """
    stream = io.BytesIO(raw)
    header = stream.read(16 if raw[2:4] in (b"+\0", b"\0+") else 8)  # "+" marks BigTIFF
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    stream.seek(tags.next)
    tags.load(stream)
    samples = int(tags.get(_SAMPLES, 1))
    extra = tags.get(_EXTRA_SAMPLES, ())
    # A fourth sample beside RGB is alpha when it says so or says nothing; "unspecified" (0) is a band of its
    # own.
    alpha = 1 if not extra or extra[0] in (1, 2) else 0
    if samples <= _COLOUR_SAMPLES.get(tags.get(_PHOTOMETRIC, 1), 1) + alpha:
        return None
    advice = f"a TIFF of {samples} bands is read when %s; store it as .npy"
    bits, formats = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    kind = (bits.pop(), formats.pop())
    if bits or formats or kind not in _DTYPES:
        raise ValueError(advice % "all bands are 8- or 16-bit unsigned or 32-bit float")
    if tags.get(_COMPRESSION, 1) not in (1, *_DEFLATE):
        raise ValueError(advice % f"uncompressed or deflated (this one: compression {tags[_COMPRESSION]})")
    if tags.get(_PREDICTOR, 1) not in (1, 2) or (tags.get(_PREDICTOR, 1) == 2 and kind[1] == 3):
        raise ValueError(advice % f"its predictor is 1 or 2 (this one: {tags[_PREDICTOR]})")
    order = "<" if raw[:2] == b"II" else ">"
    return BandLayout(int(tags[_WIDTH]), int(tags[_HEIGHT]), samples, np.dtype(order + _DTYPES[kind]), tags)


def covered(layout: BandLayout) -> tuple[int, int]:
    """(width, height) of all blocks laid side by side, which is what reading takes: at least the image's own.

    Raises:
        ValueError: blocks without an extent.
    """
    width, height = _block_size(layout)
    return -(-layout.width // width) * width, -(-layout.height // height) * height


def read_bands(raw: bytes, layout: BandLayout) -> NDArray[np.generic]:
    """All bands of the first image: [H,W,C] uint8, uint16 or float32 in native byte order.

    Raises:
        ValueError: the file ends early or its blocks do not cover the image.
    """
    tags = layout.tags
    tiled = _TILE_OFFSETS in tags
    block_width, block_height = _block_size(layout)
    depth = layout.bands if tags.get(_PLANAR, 1) == 1 else 1
    across, down = -(-layout.width // block_width), -(-layout.height // block_height)
    offsets = tags[_TILE_OFFSETS if tiled else _STRIP_OFFSETS]
    counts = tags[_TILE_COUNTS if tiled else _STRIP_COUNTS]
    if len(offsets) != len(counts) or len(offsets) != across * down * (layout.bands // depth):
        raise ValueError("the TIFF's blocks do not cover the image")
    image = np.zeros((layout.height, layout.width, layout.bands), layout.dtype.newbyteorder("="))
    for block, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        plane, cell = divmod(block, across * down)
        top, left = (cell // across) * block_height, (cell % across) * block_width
        rows = block_height if tiled else min(block_height, layout.height - top)
        pixels = _read_block(raw[offset : offset + count], layout, (rows, block_width, depth))
        target = image[top : top + rows, left : left + block_width, plane : plane + depth]
        target[...] = pixels[: target.shape[0], : target.shape[1]]
    return image


def _block_size(layout: BandLayout) -> tuple[int, int]:
    """(width, height) of a tile or a strip."""
    tags = layout.tags
    if _TILE_OFFSETS in tags:
        width, height = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
    else:
        width, height = layout.width, int(min(tags.get(_ROWS_PER_STRIP, 2**32), layout.height))
    if width < 1 or height < 1:
        raise ValueError(f"the TIFF's blocks are {width}x{height} px")
    return width, height


def _read_block(data: bytes, layout: BandLayout, shape: tuple[int, int, int]) -> NDArray[np.generic]:
    size = shape[0] * shape[1] * shape[2] * layout.dtype.itemsize
    if layout.tags.get(_COMPRESSION, 1) in _DEFLATE:
        data = zlib.decompressobj().decompress(data, size)  # never more than the header promised
    if len(data) < size:
        raise ValueError("the TIFF is truncated")
    pixels = np.frombuffer(data, layout.dtype, count=size // layout.dtype.itemsize).reshape(shape)
    if layout.tags.get(_PREDICTOR, 1) == 2:
        return np.cumsum(pixels, axis=1, dtype=layout.dtype.newbyteorder("="))  # differences wrap around
    return pixels
