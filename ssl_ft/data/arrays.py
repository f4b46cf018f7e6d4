"""Images in NumPy files: .npy, mapped from disk, and .npz with labels and splits."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.data.listing import Source, encode_labels, encode_splits, sample_content, sample_divisor
from ssl_ft.data.targets import TargetColumns, encode_targets, missing_columns, with_targets
from ssl_ft.errors import UserError

_PIXEL_TYPES = "uint8, uint16, or float from 0 to 1"
_ADVICE = f"Wanted is [images, height, width] or [images, height, width, channels] of {_PIXEL_TYPES}."
_RANGE_SAMPLE = 64  # images looked at to tell a wrong float range before a run starts; the rest is seen when decoded


def open_array(path: Path, *, wanted: TargetColumns | None = None) -> Source:
    """Images [N,H,W] or [N,H,W,C] from a .npy, or from the entry `images` of a .npz with `labels` and `split` if known.

    Args:
        path: the file.
        wanted: entries [N] of a .npz to read as targets, instead of labels.

    Raises:
        UserError: unreadable file, another shape, type or range, channels first, entries of unequal length, or targets
            that are none.
    """
    images, sides = _load(path, wanted)
    _check_images(images, path)
    labels_found = sides.get("labels") if wanted is None else None
    splits_found = sides.get("split")
    labels, classes, notes = encode_labels([None] * len(images) if labels_found is None else labels_found, str(path))
    splits = None if splits_found is None else encode_splits(splits_found, str(path))
    divisor = sample_divisor(images.nbytes)

    def read(index: int) -> NDArray[np.generic]:
        image = images[index]
        return image.astype(np.float32) if np.issubdtype(image.dtype, np.floating) else np.asarray(image)

    source = Source(
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
    if wanted is None:
        return source
    return with_targets(source, encode_targets([sides[name] for name in wanted.names], wanted, where=str(path)))


def _load(path: Path, wanted: TargetColumns | None) -> tuple[NDArray[Any], dict[str, list[object]]]:
    """Images and, of equal length, labels, splits and targets where there are any."""
    try:
        with open(path, "rb") as file:  # our own handle: np.load leaves its own open when an archive is broken
            if file.read(2) != b"PK":  # the start of a zip archive, which a .npz is
                if wanted is not None:
                    raise UserError(f"{path} holds images alone; save them with their targets as a .npz")
                return np.load(path, mmap_mode="r", allow_pickle=False), {}
            file.seek(0)
            with np.load(file, allow_pickle=False) as entries:
                if "images" not in entries.files:
                    raise UserError(
                        f"{path} has no entry `images`; its entries are {', '.join(entries.files) or 'none'}. "
                        "Save it with np.savez(path, images=..., labels=..., split=...)."
                    )
                problem = "" if wanted is None else missing_columns(wanted, entries.files, where=str(path))
                if problem:
                    raise UserError(problem)
                images = entries["images"]
                read = dict.fromkeys(["labels", "split", *(() if wanted is None else wanted.names)])
                sides = {key: entries[key] for key in read if key in entries.files}
    except UserError:
        raise
    # RuntimeError: an encrypted archive, or one packed in a way that zipfile does not know.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a NumPy file: {error} Only plain arrays are read, no Python objects."
        ) from error
    for key, side in sides.items():
        if side.shape != images.shape[:1]:
            raise UserError(
                f"{path}: `{key}` has shape {side.shape}, but there are {len(images) if images.ndim else 0} "
                "images. Give one value per image."
            )
    return images, {key: list(side.tolist()) for key, side in sides.items()}


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
