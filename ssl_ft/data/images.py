"""One image from its encoded bytes to uint8 CHW: decoding, damage, channel counts, and plain resizing.

Random views are made elsewhere, batched. Which damaged images are replaced by which is the store's business.
Colour profiles are not applied; a 16-bit colour file keeps its upper eight bits, as Pillow reads it.
"""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ssl_ft.data import tiff
from ssl_ft.errors import UserError

Pixels = NDArray[np.uint8]

# Half of the size at which Pillow itself refuses: an uncompressed colour image of a quarter of a gigabyte.
MAX_PIXELS: Final = 178_956_970 // 2
# Beyond this many times its short side an image loses its ends before the middle is cut out of it: enlarged whole, a
# line of pixels would take gigabytes.
_LONGEST_ASPECT: Final = 32

# Readers are called by name and not through `Image.open`: that keeps formats with a history of holes out, and
# lets the size be checked by our own limit where `Image.open` has a global one.
_READERS: Final[dict[bytes, type[ImageFile.ImageFile]]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"II*\0": TiffImagePlugin.TiffImageFile,
    b"MM\0*": TiffImagePlugin.TiffImageFile,
    b"II+\0": TiffImagePlugin.TiffImageFile,
    b"MM\0+": TiffImagePlugin.TiffImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
} | {f"P{digit}".encode(): PpmImagePlugin.PpmImageFile for digit in range(1, 7)}

_ORIENTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG: Final = 0x0112
_DEEP_MODES: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_GREY_MODES: Final = ("1", "L", "LA", "La", *_DEEP_MODES)


class DamagedImage(Exception):  # noqa: N818 - it describes the image; whether that is an error the store decides
    """An image that cannot be used, with the reason; the store counts, lists and replaces it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(
    raw: bytes | NDArray[np.generic],
    *,
    max_pixels: int = MAX_PIXELS,
    white_level: int = 65535,
    min_side: int = 1,
    draft_size: int | None = None,
) -> Pixels:
    """The image upright as uint8 [C,H,W]: C = 1 for grey, 3 for colour, any for arrays and many-band TIFFs.

    Files: EXIF orientation is applied, transparency is laid over white, palettes, CMYK, YCbCr and LAB become
    RGB; of an animation the first frame is taken. 16-bit grey is value*255/white_level, rounded and clipped.

    Args:
        raw: encoded file bytes, or an array [H,W] or [H,W,C] of uint8, uint16 or float in 0..1.
        max_pixels: width times height above which a file is refused before its pixels are decoded.
        white_level: the 16-bit value that becomes 255 (4095 for 12-bit cameras, for example).
        min_side: fewest pixels a side may have.
        draft_size: lets JPEGs whose short side is at least twice this be decoded at 1/2, 1/4 or 1/8 scale,
            never below it. Faster, but other pixels: not for evaluation.

    Raises:
        DamagedImage: truncated, empty, mislabelled, oversized, or of a kind not read here.
    """
    if isinstance(raw, bytes):
        image = _decode_file(raw, max_pixels=max_pixels, white_level=white_level, draft_size=draft_size)
    else:
        image = _scale_to_bytes(raw, white_level)
    height, width = image.shape[1:]
    if min(height, width) < max(1, min_side):
        raise DamagedImage(f"the image is {width}x{height} px; at least {max(1, min_side)} px a side are wanted")
    return image


def probe_header(raw: bytes | NDArray[np.generic]) -> tuple[int, int, int]:
    """(width, height, channels) that `decode` would give, without decoding the pixels.

    Raises:
        DamagedImage: the header cannot be read; damage further on is not seen here.
    """
    if not isinstance(raw, bytes):
        return raw.shape[1], raw.shape[0], 1 if raw.ndim == 2 else raw.shape[2]
    with _damage_named():
        layout = _many_bands(raw)
        if layout is not None:
            return layout.width, layout.height, layout.bands
        opened = _open_file(raw)
        width, height = opened.size
        if not isinstance(opened, TiffImagePlugin.TiffImageFile) and _orientation(opened) >= 5:
            width, height = height, width
        return width, height, 1 if opened.mode in _GREY_MODES else 3


def to_channels(image: Pixels, channels: int) -> Pixels:
    """`image` uint8 [C,H,W] with `channels` channels: grey is repeated, RGB becomes ITU-R 601 luma.

    Raises:
        UserError: any other pair of counts; which bands to drop or invent is not ours to guess.
    """
    have = image.shape[0]
    if have == channels:
        return image
    if have == 1 and channels == 3:
        return np.repeat(image, 3, axis=0)
    if have == 3 and channels == 1:
        # Pillow's own integer weights, so that grey from here and grey from Pillow are the same.
        weights = np.array([19595, 38470, 7471], dtype=np.uint32)
        luma = (np.tensordot(weights, image.astype(np.uint32), axes=1) + 0x8000) >> 16
        return luma[None].astype(np.uint8)
    raise UserError(
        f"The image has {have} channel{'s' * (have != 1)}, the model takes {channels}. Only grey to colour "
        f"(1 to 3) and colour to grey (3 to 1) are converted: use a model with {have} input channels, or "
        "choose the channels in your data."
    )


def resize_square(image: Pixels, size: int) -> Pixels:
    """The whole of `image` uint8 [C,H,W] squashed to uint8 [C,size,size], antialiased bilinear."""
    return _resize(_planes(image), size, size, Image.Resampling.BILINEAR)


def resize_center_crop(image: Pixels, size: int, *, interpolation: Literal["bilinear", "bicubic"]) -> Pixels:
    """uint8 [C,size,size] from [C,H,W]: short side to `size`, antialiased, then the middle: the evaluation geometry.

    Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` round them. Only of an image more than 32
    times as long as it is wide the ends are left out first, as much of each, which keeps memory bounded.
    """
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    long = _LONGEST_ASPECT * min(image.shape[1:])
    ends = [max(0, side - long) // 2 for side in image.shape[1:]]
    image = image[:, ends[0] : image.shape[1] - ends[0], ends[1] : image.shape[2] - ends[1]]
    height, width = image.shape[1:]
    if height <= width:
        new_height, new_width = size, int(size * width / height)
    else:
        new_height, new_width = int(size * height / width), size
    resized = _resize(_planes(image), new_width, new_height, method)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return np.ascontiguousarray(resized[:, top : top + size, left : left + size])


def resize_boxes(image: Pixels, boxes: Sequence[tuple[float, float, float, float]], size: int) -> Iterator[Pixels]:
    """Parts of `image` uint8 [C,H,W], each resized to uint8 [C,size,size], antialiased bilinear.

    Args:
        image: the whole.
        boxes: left, top, right and bottom edge of each in pixels, fractions allowed, inside the image but for rounding.
        size: side of the results.
    """
    height, width = image.shape[1:]
    planes = _planes(image)
    for left, top, right, bottom in boxes:
        inside = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
        yield _resize(planes, size, size, Image.Resampling.BILINEAR, box=inside)


def _planes(image: Pixels) -> list[Image.Image]:
    """Colour as one picture, all else channel by channel.

    Pillow would take a fourth channel for alpha and weight the others by it.
    """
    if image.shape[0] == 3:
        return [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))]
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in image]


def _resize(
    planes: list[Image.Image],
    width: int,
    height: int,
    method: Image.Resampling,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """uint8 [C,height,width] of what `_planes` made."""
    resized = [np.asarray(plane.resize((width, height), method, box)) for plane in planes]
    return resized[0].transpose(2, 0, 1) if resized[0].ndim == 3 else np.stack(resized)


def _decode_file(raw: bytes, *, max_pixels: int, white_level: int, draft_size: int | None) -> Pixels:
    with _damage_named():
        layout = _many_bands(raw)
        if layout is not None:
            # Tiles may reach far past the image, and are inflated whole.
            for width, height in ((layout.width, layout.height), tiff.covered(layout)):
                _check_size(width, height * -(-layout.bands // 4), max_pixels)
            return _scale_to_bytes(tiff.read_bands(raw, layout), white_level)
        opened = _open_file(raw)
        _check_size(*opened.size, max_pixels)
        if draft_size is not None:
            opened.draft(None, (draft_size, draft_size))  # only JPEGs do anything here, and never go below the size
        opened.load()
        turn = _ORIENTATIONS.get(_orientation(opened))
        upright = opened if turn is None else opened.transpose(turn)
        return _to_stored_channels(upright, white_level)


def _open_file(raw: bytes) -> ImageFile.ImageFile:
    if not raw:
        raise DamagedImage("the file is empty")
    for signature, reader in _READERS.items():
        if raw.startswith(signature):
            return reader(io.BytesIO(raw))
    start = raw[:256]
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise DamagedImage(f"the file holds text, not an image: it starts with {start[:20].decode()!r}")
    raise DamagedImage(
        f"not a JPEG, PNG, TIFF, BMP, WebP or PPM image, whatever its name says: it starts with {start[:8].hex(' ')}"
    )


def _many_bands(raw: bytes) -> tiff.BandLayout | None:
    is_tiff = _READERS.get(raw[:4]) is TiffImagePlugin.TiffImageFile
    return tiff.band_layout(raw) if is_tiff else None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DamagedImage(f"the header promises {width}x{height} px, more than the {max_pixels:,} px allowed")


def _orientation(opened: Image.Image) -> int:
    try:
        # The base class's reader: the PNG one would decode the whole image to look behind it.
        value = Image.Image.getexif(opened).get(_ORIENTATION_TAG, 1)
    except Exception:  # broken metadata of any kind does not make the pixels unusable
        return 1
    return value if isinstance(value, int) else 1


def _to_stored_channels(image: Image.Image, white_level: int) -> Pixels:
    if image.mode in _DEEP_MODES:
        return _scale_to_bytes(np.asarray(image), white_level)
    if image.has_transparency_data or image.mode in ("LA", "La", "PA", "RGBa"):
        return _lay_over_white(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None, "a transform that is not in place returns an image"
        image = converted
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    return _channels_first(np.asarray(image if image.mode == mode else image.convert(mode)))


def _lay_over_white(image: Image.Image) -> Pixels:
    straight = image.convert("RGBA")  # also takes palettes, colour keys and premultiplied colour
    pixels = np.asarray(straight).astype(np.uint16)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    flat = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return _channels_first(flat[..., :1] if image.mode in _GREY_MODES else flat)


def _scale_to_bytes(pixels: NDArray[np.generic], white_level: int) -> Pixels:
    """uint8 [C,H,W] from [H,W] or [H,W,C] of whole numbers (white_level = white) or floats (1 = white)."""
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise DamagedImage(f"an array of shape {pixels.shape} is no image; [height, width(, channels)] is wanted")
    if pixels.dtype == np.uint8:
        return _channels_first(pixels.astype(np.uint8, copy=False))
    if np.issubdtype(pixels.dtype, np.floating):
        values = pixels.astype(np.float64)
        if not np.all(np.isfinite(values)):
            raise DamagedImage("pixels are not all finite numbers")
        low, high = float(values.min()), float(values.max())
        if low < -1e-6 or high > 1 + 1e-6:
            raise DamagedImage(f"float pixels must lie in 0..1; these run from {low:g} to {high:g}")
        scaled = values * 255.0
    elif np.issubdtype(pixels.dtype, np.integer):
        scaled = pixels.astype(np.float64) * (255.0 / white_level)
    else:
        raise DamagedImage(f"pixels of type {pixels.dtype}; uint8, uint16 or float in 0..1 are wanted")
    return _channels_first(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _channels_first(pixels: Pixels) -> Pixels:
    # Not copied: pixels stay channels last in memory, as Pillow has them and takes them to resize.
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turns whatever Pillow raises into `DamagedImage`, and keeps its warnings about odd metadata to itself.

    Decoding runs in threads, where `warnings.catch_warnings` restores another thread's filters; so one filter
    that touches Pillow's modules alone is added by the first thread in and taken away by the last one out.
    """
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        warnings.filterwarnings("ignore", module=r"PIL\.")
        ours = warnings.filters[0]
    try:
        yield
    except DamagedImage:
        raise
    except Exception as error:  # hostile bytes reach many corners of Pillow: OSError, SyntaxError, struct.error, ...
        raise DamagedImage(str(error) or type(error).__name__) from error
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and ours in warnings.filters:
                warnings.filters.remove(ours)  # type: ignore[attr-defined] # a list at run time
