"""Checks that images come in as they are: a small file of each format against known pixels, and the user's own source.

Files are made here with Pillow and read by `data.images.decode`, as training reads them.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_ft.data.images import DamagedImage, Pixels, decode
from ssl_ft.data.source import Source
from ssl_ft.doctor.finding import Finding, sentence_of

_COLOURS = (((200, 30, 40), (20, 180, 60)), ((40, 50, 210), (240, 240, 235)))
# What JPEG at quality 95 without subsampling loses on areas of one colour; a swapped channel or turn is far more.
_JPEG_LOSS = 5
# Images of a source that are read; enough to see its pace, few enough to be quick on a network disk.
_NUM_READ = 64


@dataclass(frozen=True)
class _File:
    """An encoded file, the pixels [C, H, W] it stands for, and by how much each may differ."""

    raw: bytes
    pixels: Pixels
    tolerance: int = 0


def check_decoders() -> Finding:
    """Every format and trait that training relies on is read to the right pixels, and a torn file is refused."""
    wrong = []
    for name, make in FORMATS.items():
        try:
            problem = _difference(make())
        except Exception as error:
            problem = sentence_of(error)
        if problem:
            wrong.append(f"{name}: {problem}")
    if wrong:
        advice = "install Pillow again from its wheel (pip install --force-reinstall pillow): it brings all decoders"
        return Finding("decoders", "fail", "; ".join(wrong), advice)
    return Finding("decoders", "pass", f"{', '.join(FORMATS)}: the right pixels; a torn file is refused")


def _difference(file: _File) -> str:
    found = decode(file.raw)
    if found.shape != file.pixels.shape:
        return f"shape {found.shape}, not {file.pixels.shape}"
    gap = int(np.abs(found.astype(int) - file.pixels.astype(int)).max())
    return f"pixels differ by {gap} of 255" if gap > file.tolerance else ""


def _picture() -> NDArray[np.uint8]:
    """uint8 [16, 32, 3]: four areas of one colour, whole JPEG blocks each, unlike under every turn and flip."""
    return np.array(_COLOURS, np.uint8).repeat(8, axis=0).repeat(16, axis=1)


def _encoded(image: Image.Image, kind: str, *, orientation: int = 1) -> bytes:
    box = io.BytesIO()
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(box, kind, quality=95, subsampling=0, exif=exif)
    elif kind == "WEBP":
        image.save(box, kind, lossless=True)
    else:
        image.save(box, kind)
    return box.getvalue()


def _first(pixels: NDArray[np.uint8]) -> Pixels:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _plain(kind: str, *, tolerance: int = 0) -> _File:
    return _File(_encoded(Image.fromarray(_picture()), kind), _first(_picture()), tolerance)


def _deep() -> _File:
    values = np.linspace(0, 65535, 16 * 32).astype(np.uint16).reshape(16, 32)
    pixels = np.rint(values * (255 / 65535)).astype(np.uint8)
    return _File(_encoded(Image.fromarray(values), "TIFF"), pixels[None])


def _inks() -> _File:
    # Full inks alone, for which every conversion without a profile agrees: red, green, blue; white and black below.
    inks = np.array([[[0, 255, 255, 0], [255, 0, 255, 0]], [[255, 255, 0, 0], [0, 0, 0, 255]]], np.uint8)
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
    inks, colours = (each.repeat(8, axis=0).repeat(16, axis=1) for each in (inks, colours))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in inks.transpose(2, 0, 1)]
    return _File(_encoded(Image.merge("CMYK", planes), "JPEG"), _first(colours), 2 * _JPEG_LOSS)


def _turned(orientation: int) -> _File:
    """A JPEG whose EXIF says how it lies; values 1 to 8 as the EXIF standard defines them."""
    stored = _picture()
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    return _File(_encoded(Image.fromarray(stored), "JPEG", orientation=orientation), _first(upright), _JPEG_LOSS)


def _all_turns() -> _File:
    """The first orientation that is read wrongly, or the last one."""
    files = [_turned(orientation) for orientation in range(1, 9)]
    return next((file for file in files if _difference(file)), files[-1])


def _torn() -> _File:
    # Uneven, so that most of the file is pixels and the cut goes through them.
    places = np.arange(64)
    uneven = ((places[:, None] ** 2 + 7 * places**2) % 251).astype(np.uint8)
    raw = _encoded(Image.fromarray(uneven), "JPEG")
    try:
        decode(raw[: len(raw) * 3 // 4])
    except DamagedImage:
        return _plain("JPEG", tolerance=_JPEG_LOSS)
    raise RuntimeError("a file cut off at three quarters is read as if it were whole")


FORMATS: dict[str, Callable[[], _File]] = {
    "JPEG": lambda: _plain("JPEG", tolerance=_JPEG_LOSS),
    "PNG": lambda: _plain("PNG"),
    "TIFF": lambda: _plain("TIFF"),
    "16-bit TIFF": _deep,
    "WebP": lambda: _plain("WEBP"),
    "CMYK": _inks,
    "EXIF orientation": _all_turns,
    "torn JPEG": _torn,
}


def check_source(open_source: Callable[[], Source] | None) -> Finding:
    """A few evenly spread images of the user's source can be read, and how fast.

    Args:
        open_source: opens it; None where no source was named.
    """
    if open_source is None:
        return Finding("data", "cannot check", "no source was named", "name one with data=photos/ to have it read from")
    source = open_source()
    count = min(_NUM_READ, len(source))
    chosen = [number * len(source) // count for number in range(count)]
    shapes, damaged = [], []
    start = time.monotonic()
    for index in chosen:
        try:
            shapes.append(decode(source.read(index)).shape)
        except (DamagedImage, OSError) as error:
            damaged.append(f"{source.names[index]} ({error})")
    pace = count / max(time.monotonic() - start, 1e-6)
    where = f"{source.location} ({source.kind})"
    measured = f"{count} of {len(source):,} images of {where} read, {pace:,.0f} a second on one thread"
    if damaged:
        told = f"{measured}; {len(damaged)} of them damaged: {'; '.join(damaged[:3])}"
        advice = "`ssl-ft index` lists all damaged files; mend or remove them, or raise data.max_damaged_share"
        return Finding("data", "fail", told, advice)
    return Finding("data", "pass", f"{measured}; {_sizes(shapes)}")


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    sides = sorted(min(shape[1:]) for shape in shapes)
    channels = ", ".join(str(count) for count in sorted({shape[0] for shape in shapes}))
    return f"short side {sides[0]} to {sides[-1]} px, channels: {channels}"
