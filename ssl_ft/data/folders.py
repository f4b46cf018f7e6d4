"""Image files in folders: class folders, and flat or nested folders without labels.

Files are told apart by extension only; whether one really is an image shows when it is decoded.
"""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_ft.data.images import DamagedImage
from ssl_ft.data.listing import SPLIT_ALIASES, Source, canonical_split, encode_labels
from ssl_ft.errors import UserError

IMAGE_EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".pnm"])
# No image that passes the pixel limit needs more; reading a larger file whole could exhaust the memory.
MAX_FILE_BYTES = 2**30


@dataclass
class FolderScan:
    """What lies below a folder: images in stable order, and counts of what was passed over."""

    root: Path
    parts: list[tuple[str, ...]] = field(default_factory=list)  # of each image, relative to the root
    sizes: list[int] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # extension -> files
    hidden: int = 0
    broken_links: int = 0
    loops: int = 0


def scan_folder(root: Path) -> FolderScan:
    """All images below `root`, ordered by the bytes of their POSIX paths; links are followed, loops are not.

    Raises:
        UserError: a folder may not be read.
    """
    scan = FolderScan(root)
    found: list[tuple[bytes, tuple[str, ...], int]] = []
    _walk(root, (), (), scan, found)
    for _, parts, size in sorted(found):
        scan.parts.append(parts)
        scan.sizes.append(size)
    return scan


def _walk(
    folder: Path,
    parts: tuple[str, ...],
    above: tuple[tuple[int, int], ...],
    scan: FolderScan,
    found: list[tuple[bytes, tuple[str, ...], int]],
) -> None:
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}. Check its permissions.") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        scan.loops += 1
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            scan.hidden += 1
            continue
        inner = (*parts, entry.name)
        extension = os.path.splitext(entry.name)[1].lower()
        try:
            target = entry.stat()
        except OSError:  # a link to nothing, or to itself
            scan.broken_links += 1
            continue
        if stat.S_ISDIR(target.st_mode):
            _walk(folder / entry.name, inner, (*above, here), scan, found)
        elif extension in IMAGE_EXTENSIONS and stat.S_ISREG(target.st_mode):  # opening a pipe would wait for ever
            found.append((os.fsencode("/".join(inner)), inner, target.st_size))
        else:
            scan.others[extension] += 1


def open_images(root: Path, kind: str) -> Source:
    """The folder's images as a source of `kind`: "class_folders", "flat", or "auto" (told apart by their layout).

    Auto takes class folders where every image lies exactly one level down (or one below folders that are all
    named train, val, valid, validation or test), in at least two classes; anything else is flat.

    Raises:
        UserError: no images, or class folders were asked for and the layout is another.
    """
    scan = scan_folder(root)
    if not scan.parts:
        raise UserError(f"There are no images in {root}: {_what_is_there(scan)}. {_readable_types()}")
    obstacle = _why_not_class_folders(scan)
    if kind == "class_folders" and obstacle:
        raise UserError(
            f"{root} cannot be read as class folders: {obstacle}. Wanted is CLASS/image or SPLIT/CLASS/image "
            "with at least two classes. Use kind=flat for images without labels."
        )
    notes = _passed_over(scan)
    if kind == "class_folders" or (kind == "auto" and not obstacle):
        return _class_folders(scan, notes)
    deeper = sorted({part for parts in scan.parts for part in parts[1:-1] if part.lower() in SPLIT_ALIASES})
    if kind == "auto" and deeper:
        # Read flat, images meant for testing would end up in the pool that is pretrained on.
        raise UserError(
            f"{root} holds folders named {', '.join(deeper)} below others, where they are not taken for splits. "
            "Name the folder right above the splits, or use kind=flat to take every image as unlabelled."
        )
    if kind == "auto" and obstacle and any(len(parts) > 1 for parts in scan.parts):
        notes += (f"{root} was read as images without labels: {obstacle}.",)
    return _flat(scan, notes)


def _has_split_level(scan: FolderScan) -> bool:
    return all(len(parts) > 1 and parts[0].lower() in SPLIT_ALIASES for parts in scan.parts)


def _why_not_class_folders(scan: FolderScan) -> str | None:
    """The first thing that speaks against class folders; None where nothing does."""
    levels = 2 if _has_split_level(scan) else 1
    for parts in scan.parts:
        if len(parts) != levels + 1:
            place = "/".join(parts)
            return f"{place} lies {len(parts) - 1} folders deep where {levels} would be wanted"
    classes = {parts[levels - 1] for parts in scan.parts}
    if len(classes) < 2:
        return f"there is one class folder only ({classes.pop()})"
    return None


def _class_folders(scan: FolderScan, notes: tuple[str, ...]) -> Source:
    level = 1 if _has_split_level(scan) else 0
    labels, classes, label_notes = encode_labels([parts[level] for parts in scan.parts], str(scan.root))
    splits = np.array([canonical_split(parts[0]) for parts in scan.parts]) if level else None
    if labels is not None and splits is not None:
        for split in np.unique(splits):
            present = set(labels[splits == split].tolist())
            absent = [name for number, name in enumerate(classes) if number not in present]
            if absent:
                notes += (f"{scan.root}: the {split} split has no images of {', '.join(absent[:10])}.",)
    return _file_source("class_folders", scan, notes=notes + label_notes, labels=labels, classes=classes, splits=splits)


def _flat(scan: FolderScan, notes: tuple[str, ...]) -> Source:
    splits = np.array([canonical_split(parts[0]) for parts in scan.parts]) if _has_split_level(scan) else None
    return _file_source("flat", scan, notes=notes, labels=None, classes=(), splits=splits)


def _file_source(
    kind: str,
    scan: FolderScan,
    *,
    notes: tuple[str, ...],
    labels: "np.ndarray[tuple[int], np.dtype[np.int64]] | None",
    classes: tuple[str, ...],
    splits: "np.ndarray[tuple[int], np.dtype[np.str_]] | None",
) -> Source:
    paths = [os.path.join(scan.root, *parts) for parts in scan.parts]
    sizes = scan.sizes
    return Source(
        kind=kind,
        location=str(scan.root),
        names=printable_names(["/".join(parts) for parts in scan.parts]),
        read=lambda i: read_file(paths[i]),
        evidence=lambda i: str(sizes[i]).encode(),
        labels=labels,
        class_names=tuple(printable_names(classes)),
        splits=splits,
        notes=notes,
    )


def printable_names(names: Sequence[str]) -> list[str]:
    """Names that can be written as UTF-8: bytes that are none, legal in file names, appear as backslash escapes."""
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]


def read_file(path: str) -> bytes:
    """The whole file.

    Raises:
        DamagedImage: it cannot be read, or is far larger than any image that would be accepted.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise DamagedImage(f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB")
            return file.read()
    except OSError as error:
        raise DamagedImage(f"the file cannot be read: {error.strerror}") from error


def _passed_over(scan: FolderScan) -> tuple[str, ...]:
    notes = []
    if scan.others:
        notes.append(f"{scan.root}: passed over files that are no images: {_counts(scan.others)}.")
    if scan.hidden:
        notes.append(f"{scan.root}: passed over {scan.hidden} hidden files or folders.")
    if scan.broken_links:
        notes.append(f"{scan.root}: passed over {scan.broken_links} links that lead nowhere.")
    if scan.loops:
        notes.append(f"{scan.root}: passed over {scan.loops} links that lead back to a folder above them.")
    return tuple(notes)


def _what_is_there(scan: FolderScan) -> str:
    parts = []
    if scan.others:
        parts.append(f"it holds {_counts(scan.others)}")
    if scan.hidden:
        parts.append(f"{scan.hidden} hidden files or folders")
    if scan.broken_links:
        parts.append(f"{scan.broken_links} links that lead nowhere")
    return ", ".join(parts) or "it is empty"


def _counts(others: Counter[str]) -> str:
    return ", ".join(f"{count} {extension or 'without extension'}" for extension, count in others.most_common(6))


def _readable_types() -> str:
    return f"Images are files ending in {' '.join(sorted(IMAGE_EXTENSIONS))}; name a folder that holds some."
