"""Decoding of every format, mode and kind of damage, made with Pillow on the spot; channel counts and resizing."""

import io
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ssl_ft.data.images import (
    DamagedImage,
    decode,
    probe_header,
    resize_center_crop,
    resize_square,
    to_channels,
)
from ssl_ft.errors import UserError


def noise(height: int = 12, width: int = 17, channels: int = 3, *, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [(rows * (2 + c) + columns * (5 - c)) * 255 // (7 * (height + width)) for c in range(channels)]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def first(pixels: np.ndarray) -> np.ndarray:
    """Channels first."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- formats and modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_give_the_pixels_back(kind: str, channels: int) -> None:
    pixels = noise(channels=channels)
    raw = encoded(Image.fromarray(pixels), kind)
    np.testing.assert_array_equal(decode(raw), first(pixels))
    assert probe_header(raw) == (17, 12, channels)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_come_close(kind: str, options: dict[str, int]) -> None:
    pixels = smooth(40, 60)
    got = decode(encoded(Image.fromarray(pixels), kind, **options))
    assert got.dtype == np.uint8
    assert got.transpose(1, 2, 0).flags.c_contiguous  # channels last in memory, which Pillow resizes without a copy
    assert np.abs(got.astype(int) - first(pixels)).max() < 12


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    pixels = noise()
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(pixels), "TIFF", compression=compression)), first(pixels)
    )


def test_one_bit_becomes_grey() -> None:
    pixels = noise(channels=1) > 127
    for kind in ("PNG", "TIFF", "PPM"):
        got = decode(encoded(Image.fromarray(pixels), kind))
        np.testing.assert_array_equal(got, first(pixels) * np.uint8(255))


def test_palette_becomes_rgb() -> None:
    image = Image.fromarray(smooth(16, 16)).quantize(32)
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), first(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    colour, alpha = noise(), noise(channels=1, seed=1)
    alpha[0, :3] = (0, 255, 128)
    raw = encoded(Image.fromarray(np.dstack([colour, alpha]), "RGBA"), kind)
    share = alpha[..., None] / 255.0
    expected = np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)
    got = decode(raw)
    np.testing.assert_array_equal(got, first(expected))
    assert probe_header(raw) == (17, 12, 3)
    np.testing.assert_array_equal(got[:, 0, 0], 255)
    np.testing.assert_array_equal(got[:, 0, 1], colour[0, 1])


def test_grey_with_alpha_stays_grey() -> None:
    grey, alpha = noise(channels=1), noise(channels=1, seed=1)
    got = decode(encoded(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"))
    expected = np.rint(grey * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).astype(np.uint8)
    np.testing.assert_array_equal(got, expected[None])


def test_transparent_palette_and_colour_keys() -> None:
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = Image.fromarray(indices, "P")
    image.putpalette([value for index in range(16) for value in (index * 10, 5, 200)])
    got = decode(encoded(image, "PNG", transparency=3))
    np.testing.assert_array_equal(got[:, 0, 3], 255)
    np.testing.assert_array_equal(got[:, 0, 2], (20, 5, 200))
    by_alpha = decode(encoded(image, "PNG", transparency=bytes([0, 128] + [255] * 14)))
    np.testing.assert_array_equal(by_alpha[:, 0, 0], 255)
    assert by_alpha[1, 0, 1] == round(5 * 128 / 255 + 127)
    grey = decode(encoded(Image.fromarray(indices), "PNG", transparency=7))
    assert grey.shape == (1, 4, 4)
    assert grey[0, 1, 3] == 255
    assert grey[0, 1, 2] == 6


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    pixels = smooth(16, 24)
    got = decode(encoded(Image.fromarray(pixels).convert("CMYK"), kind))
    assert np.abs(got.astype(int) - first(pixels)).max() < 12


def test_lab_and_ycbcr_become_rgb() -> None:
    lab = Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8), "LAB")  # white; a and b are signed
    assert decode(encoded(lab, "TIFF")).min() >= 253
    red = Image.new("RGB", (8, 8), (200, 30, 40))
    got = decode(encoded(red.convert("YCbCr"), "TIFF"))
    assert np.abs(got[:, 0, 0].astype(int) - (200, 30, 40)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey(kind: str) -> None:
    pixels = np.array([[0, 128, 257, 1000], [4095, 32768, 65407, 65535]], dtype=np.uint16)
    raw = encoded(Image.fromarray(pixels), kind)
    np.testing.assert_array_equal(decode(raw), np.rint(pixels[None] * (255 / 65535)).astype(np.uint8))
    twelve_bit = decode(raw, white_level=4095)
    np.testing.assert_array_equal(twelve_bit[0, 0], np.rint(pixels[0] * (255 / 4095)))
    np.testing.assert_array_equal(twelve_bit[0, 1], 255)
    assert probe_header(raw) == (4, 2, 1)


def test_big_endian_sixteen_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 256, 65535))
    np.testing.assert_array_equal(decode(encoded(image, "TIFF")), [[[1, 255]]])


def test_float_tiff_must_lie_in_zero_to_one() -> None:
    good = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(good), "TIFF")), [[[0, 128, 255]]])
    with pytest.raises(DamagedImage, match=r"must lie in 0\.\.1; these run from 0 to 20"):
        decode(encoded(Image.fromarray(good * 20), "TIFF"))
    with pytest.raises(DamagedImage, match="finite"):
        decode(encoded(Image.fromarray(good * np.float32(np.nan)), "TIFF"))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    got = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert got[0].min() > 230
    assert got[1].max() < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :16] = 255  # one white quarter and the shape tell all eight apart
    pixels[:8, 16:] = 120
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(pixels).convert("RGB"), kind, exif=exif)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels.T[:, ::-1],
        7: pixels.T[::-1, ::-1],
        8: pixels.T[::-1],
    }[orientation]
    got = decode(raw)
    assert got.shape[1:] == turned.shape
    assert np.abs(got[0].astype(int) - turned).mean() < 8
    assert probe_header(raw) == (turned.shape[1], turned.shape[0], 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(Image.fromarray(noise()), "PNG", exif=exif)).shape == (3, 12, 17)


def test_broken_metadata_neither_damages_nor_warns() -> None:
    good = encoded(Image.fromarray(noise()), "JPEG")
    body = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff" + b"\x99" * 9
    raw = good[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + good[2:]
    np.testing.assert_array_equal(decode(raw), decode(good))


def test_warning_filters_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    raw = encoded(Image.fromarray(noise(64, 64)), "PNG")
    threads = [threading.Thread(target=lambda: [decode(raw) for _ in range(50)]) for _ in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert list(warnings.filters) == before


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM"])
def test_every_truncation_is_found(kind: str) -> None:
    raw = encoded(Image.fromarray(noise(40, 40)), kind)
    for keep in (0.02, 0.1, 0.5, 0.9):
        with pytest.raises(DamagedImage) as caught:
            decode(raw[: max(3, int(len(raw) * keep))])
        assert caught.value.reason


def test_truncated_says_so() -> None:
    raw = encoded(Image.fromarray(noise(40, 40)), "JPEG")
    with pytest.raises(DamagedImage, match="truncated"):
        decode(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404</body></html>", "holds text, not an image: it starts with '<html><body>404"),
        (b"version https://git-lfs.github.com/spec/v1\n", "holds text"),
        (b"GIF89a\x01\x00\x01\x00\x80", "not a JPEG, PNG, TIFF, BMP, WebP or PPM image"),
        (b"\x00" * 64, "not a JPEG"),
    ],
)
def test_what_is_no_image_is_named(raw: bytes, reason: str) -> None:
    for look in (decode, probe_header):
        with pytest.raises(DamagedImage, match=reason):
            look(raw)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_escapes_as_something_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM"):
        good = encoded(Image.fromarray(noise(24, 24)), kind)
        for _ in range(40):
            raw = bytearray(good)
            for place in rng.integers(0, min(len(raw), 200), 4):
                raw[place] = int(rng.integers(0, 256))
            try:
                image = decode(bytes(raw), max_pixels=1_000_000)
            except DamagedImage:
                continue
            assert image.dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_decompression_bomb_is_refused_by_its_header(kind: str) -> None:
    raw = bytearray(encoded(Image.fromarray(noise(8, 8)), kind))
    if kind == "PNG":
        raw[16:24] = struct.pack(">II", 60_000, 60_000)
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    elif kind == "BMP":
        raw[18:26] = struct.pack("<ii", 60_000, 60_000)
    else:
        raw = bytearray(b"P6 60000 60000 255\n")
    with pytest.raises(DamagedImage, match=r"promises 60000x60000 px, more than the 89,478,485 px allowed"):
        decode(bytes(raw))


def test_pixel_limit_is_ours_alone() -> None:
    raw = encoded(Image.fromarray(noise(10, 10)), "PNG")
    assert decode(raw, max_pixels=100).shape == (3, 10, 10)
    with pytest.raises(DamagedImage, match="10x10 px, more than the 99 px"):
        decode(raw, max_pixels=99)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_smallest_side() -> None:
    raw = encoded(Image.fromarray(noise(1, 1)), "PNG")
    assert decode(raw).shape == (3, 1, 1)
    with pytest.raises(DamagedImage, match="1x1 px; at least 4 px"):
        decode(raw, min_side=4)


def test_draft_halves_a_large_jpeg_and_never_goes_below() -> None:
    raw = encoded(Image.fromarray(smooth(100, 140)), "JPEG")
    assert decode(raw).shape == (3, 100, 140)
    assert decode(raw, draft_size=51).shape == (3, 100, 140)
    assert decode(raw, draft_size=50).shape == (3, 50, 70)
    assert min(decode(raw, draft_size=13).shape[1:]) >= 13
    assert decode(encoded(Image.fromarray(noise(100, 140)), "PNG"), draft_size=10).shape == (3, 100, 140)


# --- arrays -------------------------------------------------------------------------------------------------------


def test_arrays() -> None:
    pixels = noise(channels=5)
    np.testing.assert_array_equal(decode(pixels), first(pixels))
    np.testing.assert_array_equal(decode(noise(channels=1)), noise(channels=1)[None])
    assert probe_header(pixels) == (17, 12, 5)
    deep = np.array([[0, 500, 1000, 2000]], dtype=np.uint16)
    np.testing.assert_array_equal(decode(deep, white_level=1000), [[[0, 128, 255, 255]]])
    np.testing.assert_array_equal(decode(np.array([[0.0, 1.0]], np.float32)), [[[0, 255]]])
    with pytest.raises(DamagedImage, match="run from 0 to 255"):
        decode(np.array([[0.0, 255.0]], np.float32))
    with pytest.raises(DamagedImage, match=r"shape \(3,\)"):
        decode(np.zeros(3, np.uint8))
    with pytest.raises(DamagedImage, match="complex"):
        decode(np.zeros((3, 3), np.complex64))


# --- channels and sizes -------------------------------------------------------------------------------------------


def test_to_channels() -> None:
    grey, colour = noise(channels=1)[None], first(noise())
    assert to_channels(colour, 3) is colour
    np.testing.assert_array_equal(to_channels(grey, 3), np.stack([grey[0]] * 3))
    many = noise(300, 300)
    np.testing.assert_array_equal(to_channels(first(many), 1)[0], np.asarray(Image.fromarray(many).convert("L")))
    with pytest.raises(UserError, match="has 5 channels, the model takes 3"):
        to_channels(np.zeros((5, 2, 2), np.uint8), 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(40, 61, 16), (61, 40, 17), (33, 33, 32), (10, 13, 24)])
def test_center_crop_is_torchvisions(interpolation: Any, height: int, width: int, size: int) -> None:
    pixels = noise(height, width)
    image = Image.fromarray(pixels)
    resized = tv.resize(image, [size], interpolation=InterpolationMode(interpolation))
    expected = np.asarray(tv.center_crop(resized, [size]))
    got = resize_center_crop(first(pixels), size, interpolation=interpolation)
    np.testing.assert_array_equal(got, first(expected))


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize(("short", "long"), [(1, 65535), (1, 40_000_000), (1, 101)])
def test_of_a_strip_the_middle_is_cut_in_bounded_memory(short: int, long: int, is_tall: bool) -> None:
    strip = np.zeros((1, short, long), np.uint8)
    middle = slice(long // 2 - 50, long // 2 + 51)  # what is not looked at stays unwritten
    strip[..., middle] = np.random.default_rng(0).integers(0, 256, strip[..., middle].shape)
    near = np.ascontiguousarray(strip[..., long // 2 - 50 : -(-long // 2) + 50])  # about the same centre
    turned = (lambda image: image.transpose(0, 2, 1)) if is_tall else (lambda image: image)
    got = turned(resize_center_crop(turned(strip), 64, interpolation="bilinear"))
    whole = np.asarray(Image.fromarray(near[0]).resize((64 * near.shape[2], 64), Image.Resampling.BILINEAR))
    left = (whole.shape[1] - 64) // 2
    # Half a pixel of the enlarged image may be rounded elsewhere.
    assert np.abs(got[0].astype(int) - whole[:, left : left + 64]).max() <= 255 / 64 + 1


@pytest.mark.parametrize(("height", "width"), [(2, 64), (32, 1)])
def test_long_images_of_ordinary_shape_keep_every_bit(height: int, width: int) -> None:
    pixels = noise(height, width)
    resized = tv.resize(Image.fromarray(pixels), [16])
    got = resize_center_crop(first(pixels), 16, interpolation="bilinear")
    np.testing.assert_array_equal(got, first(np.asarray(tv.center_crop(resized, [16]))))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_resizing_treats_every_channel_alike(channels: int) -> None:
    pixels = first(noise(30, 41, 7))[:channels]
    square = resize_square(pixels, 12)
    assert square.shape == (channels, 12, 12)
    assert square.dtype == np.uint8
    alone = np.concatenate([resize_square(plane[None], 12) for plane in pixels])
    np.testing.assert_array_equal(square, alone)
    wide = torch.nn.functional.interpolate(
        torch.from_numpy(pixels[None].astype(np.float32)), (12, 12), mode="bilinear", antialias=True
    )
    assert np.abs(wide[0].numpy() - square).max() <= 1.01  # Pillow rounds after each of its two passes


def test_real_photos_agree_with_pillow(shared_data: Path) -> None:
    photos = sorted((shared_data / "flowers5/images/test").rglob("*.jpg"))[:20]
    assert photos
    for photo in photos:
        raw = photo.read_bytes()
        with Image.open(photo) as image:
            expected = np.asarray(image.convert("RGB"))
        got = decode(raw)
        np.testing.assert_array_equal(got, first(expected))
        assert probe_header(raw) == (got.shape[2], got.shape[1], 3)
