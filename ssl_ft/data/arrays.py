"""Images in NumPy files: .npy, mapped from disk, and .npz with labels and splits."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.data.listing import Source, encode_labels, encode_splits, sample_content, sample_divisor
from ssl_ft.errors import UserError

_PIXEL_TYPES = "uint8, uint16, or float from 0 to 1"
_ADVICE = f"Wanted is [images, height, width] or [images, height, width, channels] of {_PIXEL_TYPES}."
_RANGE_SAMPLE = 64  # images looked at to tell a wrong float range before a run starts; the rest is seen when decoded


def open_array(path: Path) -> Source:
    """Images [N,H,W] or [N,H,W,C] from a .npy, or from the entry `images` of a .npz with `labels` and `split` if known.

    Raises:
        UserError: unreadable file, another shape, type or range, channels first, or entries of unequal
            length.
    """
    images, labels_found, splits_found = _load(path)
    _check_images(images, path)
    labels, classes, notes = encode_labels([None] * len(images) if labels_found is None else labels_found, str(path))
    splits = None if splits_found is None else encode_splits(splits_found, str(path))
    divisor = sample_divisor(images.nbytes)

    def read(index: int) -> NDArray[np.generic]:
        image = images[index]
        return image.astype(np.float32) if np.issubdtype(image.dtype, np.floating) else np.asarray(image)

    return Source(
        kind="array",
        location=str(path),
        names=[f"{path.name}#{index}" for index in range(len(images))],
        read=read,
        evidence=lambda i: sample_content(images[i], divisor),
        labels=labels,
        class_names=classes,
        splits=splits,
        notes=notes,
    )


def _load(path: Path) -> tuple[NDArray[Any], list[object] | None, list[object] | None]:
    """Images and, where there are any, labels and splits, of equal length."""
    try:
        with open(path, "rb") as file:  # our own handle: np.load leaves its own open when an archive is broken
            if file.read(2) != b"PK":  # the start of a zip archive, which a .npz is
                return np.load(path, mmap_mode="r", allow_pickle=False), None, None
            file.seek(0)
            with np.load(file, allow_pickle=False) as entries:
                if "images" not in entries.files:
                    raise UserError(
                        f"{path} has no entry `images`; its entries are {', '.join(entries.files) or 'none'}. "
                        "Save it with np.savez(path, images=..., labels=..., split=...)."
                    )
                images = entries["images"]
                sides = {key: entries[key] for key in ("labels", "split") if key in entries.files}
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a NumPy file: {error} Only plain arrays are read, no Python objects."
        ) from error
    for key, side in sides.items():
        if side.shape != images.shape[:1]:
            raise UserError(
                f"{path}: `{key}` has shape {side.shape}, but there are {len(images) if images.ndim else 0} "
                "images. Give one value per image."
            )
    values = {key: list(side.tolist()) for key, side in sides.items()}
    return images, values.get("labels"), values.get("split")


def _check_images(images: NDArray[Any], path: Path) -> None:
    if images.ndim not in (3, 4):
        raise UserError(f"{path}: the images have shape {images.shape}. {_ADVICE}")
    if 0 in images.shape:
        raise UserError(f"{path} holds no images: its shape is {images.shape}. {_ADVICE}")
    if images.ndim == 4 and images.shape[1] <= 4 < images.shape[3]:
        raise UserError(
            f"{path}: shape {images.shape} looks like [images, channels, height, width]. Move the channels "
            "to the end: np.save(path, images.transpose(0, 2, 3, 1))."
        )
    if images.dtype not in (np.uint8, np.uint16) and not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{path}: the images have type {images.dtype}. {_ADVICE}")
    if np.issubdtype(images.dtype, np.floating):
        sample = images[np.linspace(0, len(images) - 1, min(len(images), _RANGE_SAMPLE)).astype(int)]
        low, high = float(np.nanmin(sample)), float(np.nanmax(sample))
        if low < -1e-6 or high > 1 + 1e-6:
            raise UserError(
                f"{path}: float images must lie in 0..1; these run from {low:g} to {high:g}. Divide by the "
                "white value, or save them as uint8 or uint16."
            )
