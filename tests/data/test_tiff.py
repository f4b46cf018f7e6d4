"""TIFF files of many bands, written here by hand, in every layout that is read, and the words for the others."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest

from ssl_ft.data.images import DamagedImage, decode, probe_header


def noise(height: int = 12, width: int = 17, channels: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def first(pixels: np.ndarray) -> np.ndarray:
    """Channels first."""
    return pixels.transpose(2, 0, 1)


def band_tiff(pixels: np.ndarray, **layout: Any) -> bytes:
    """A TIFF 6.0 file of [H,W,C]; options order, tile, rows, planar, deflate, predictor, photometric, extra."""
    order = layout.get("order", "<")
    height, width, bands = pixels.shape
    values = pixels.astype(pixels.dtype.newbyteorder(order))
    planes = [values[..., c : c + 1] for c in range(bands)] if layout.get("planar") else [values]
    tile, rows = layout.get("tile"), layout.get("rows", height)
    blocks = []
    for plane in planes:
        step_y, step_x = (tile, tile) if tile else (rows, width)
        for top in range(0, height, step_y):
            for left in range(0, width, step_x):
                block = plane[top : top + step_y, left : left + step_x]
                if tile:
                    missing = ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0))
                    block = np.pad(block, missing)
                if layout.get("predictor"):
                    block = np.concatenate([block[:, :1], np.diff(block, axis=1)], axis=1)
                data = block.astype(values.dtype).tobytes()
                blocks.append(zlib.compress(data) if layout.get("deflate") else data)
    bits, float_kind = pixels.dtype.itemsize * 8, pixels.dtype.kind == "f"
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * bands),
        259: (3, [layout.get("compression", 8 if layout.get("deflate") else 1)]),
        262: (3, [layout.get("photometric", 1)]),
        277: (3, [bands]),
        284: (3, [2 if layout.get("planar") else 1]),
        317: (3, [2 if layout.get("predictor") else 1]),
        338: (3, layout.get("extra", [0] * (bands - (3 if layout.get("photometric") == 2 else 1)))),
        339: (3, [3 if float_kind else 1] * bands),
    }
    counts = [len(block) for block in blocks]
    tags |= {322: (4, [tile]), 323: (4, [tile]), 325: (4, counts)} if tile else {278: (4, [rows]), 279: (4, counts)}
    where = 324 if tile else 273
    offsets = np.cumsum([8, *counts[:-1]]).tolist()
    tags[where] = (4, offsets)
    directory = 8 + sum(counts)
    extra_at = directory + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag in sorted(tags):
        kind, numbers = tags[tag]
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            value = struct.pack(f"{order}I", extra_at + len(extra))
            extra += packed
        else:
            value = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    count = struct.pack(f"{order}H", len(tags))
    return header + b"".join(blocks) + count + entries + struct.pack(f"{order}I", 0) + extra


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"order": ">", "rows": 5},
        {"planar": True, "rows": 4, "deflate": True},
        {"tile": 16, "deflate": True, "predictor": True},
        {"tile": 16, "planar": True, "order": ">"},
        {"photometric": 2},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_with_five_bands_keeps_them_all(layout: dict[str, Any], dtype: str) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, (19, 35, 5), dtype=dtype, endpoint=True)
    raw = band_tiff(pixels, **layout)
    np.testing.assert_array_equal(decode(raw), first(np.rint(pixels * (255 / top)).astype(np.uint8)))
    assert probe_header(raw) == (35, 19, 5)


def test_bands_beside_alpha_are_kept() -> None:
    pixels = noise(channels=5)
    np.testing.assert_array_equal(decode(band_tiff(pixels, photometric=2, extra=[2, 0])), first(pixels))


def test_fourth_unspecified_band_is_kept_and_alpha_is_not() -> None:
    pixels = noise(channels=4)
    assert decode(band_tiff(pixels, photometric=2, extra=[2])).shape[0] == 3
    np.testing.assert_array_equal(decode(band_tiff(pixels, photometric=2)), first(pixels))


def test_many_band_tiff_that_cannot_be_read_says_what_to_do() -> None:
    pixels = noise(channels=6)
    with pytest.raises(DamagedImage, match=r"6 bands .* \(this one: compression 5\); store it as \.npy"):
        decode(band_tiff(pixels, compression=5))
    with pytest.raises(DamagedImage, match=r"8- or 16-bit unsigned or 32-bit float; store it as \.npy"):
        decode(band_tiff(pixels.astype(np.float64)))
    whole = band_tiff(pixels)
    cut = whole[:8] + whole[8 + 300 : 8 + pixels.size] + whole[8 + pixels.size :]
    with pytest.raises(DamagedImage):
        decode(cut)
    with pytest.raises(DamagedImage, match="promises"):
        decode(whole, max_pixels=100)


@pytest.mark.parametrize("is_deflated", [True, False])
def test_tiles_far_larger_than_the_image_are_refused_before_they_are_inflated(is_deflated: bool) -> None:
    whole = band_tiff(noise(), tile=32, deflate=is_deflated)
    for tag in (322, 323):
        entry = struct.pack("<HHII", tag, 4, 1, 32)
        assert whole.count(entry) == 1
        whole = whole.replace(entry, struct.pack("<HHII", tag, 4, 1, 65536))
    assert probe_header(whole) == (17, 12, 5)
    with pytest.raises(DamagedImage, match="promises 65536x131072 px, more than the"):
        decode(whole)
    none = whole.replace(struct.pack("<HHII", 322, 4, 1, 65536), struct.pack("<HHII", 322, 4, 1, 0))
    with pytest.raises(DamagedImage, match="the TIFF's blocks are 0x65536 px"):
        decode(none)


def test_a_tile_of_the_usual_size_may_be_larger_than_the_image() -> None:
    pixels = noise()
    np.testing.assert_array_equal(decode(band_tiff(pixels, tile=256, deflate=True)), first(pixels))
