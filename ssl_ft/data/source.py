"""Opening a location as a `Source`: which kind it is, by what is there or by name.

The table `KINDS` is all there is to add a kind to; what the kinds read stands in `folders`, `manifests`,
`tables`, `arrays`, `shards` and `named`. Roles of labels are given out in `splits`.
"""

import difflib
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ssl_ft.data.arrays import open_array
from ssl_ft.data.folders import IMAGE_EXTENSIONS, open_images
from ssl_ft.data.index_files import INDEX_FILE
from ssl_ft.data.listing import Source, join_test
from ssl_ft.data.manifests import open_manifest
from ssl_ft.data.named import open_digits, open_torchvision
from ssl_ft.data.places import is_url, open_folder
from ssl_ft.data.shards import open_shards
from ssl_ft.data.tables import open_parquet, parquet_columns, parquet_files
from ssl_ft.data.targets import TargetColumns, join_targets
from ssl_ft.errors import UserError

__all__ = ["KINDS", "Source", "is_unindexed", "open_source"]

# name -> opener(location, download); `download` concerns torchvision's sets alone.
KINDS: dict[str, Callable[[str, bool], Source]] = {
    "class_folders": lambda location, _: open_images(_folder(location), "class_folders"),
    "flat": lambda location, _: open_images(_folder(location), "flat"),
    "manifest": lambda location, _: open_manifest(_file(location)),
    "parquet": lambda location, _: open_parquet(_existing(location)),
    "array": lambda location, _: open_array(_file(location)),
    "shards": lambda location, _: open_shards(location if is_url(location) else str(_folder(location))),
    "torchvision": lambda location, download: open_torchvision(location, download=download),
    "digits": lambda location, _: open_digits(),
}
# The kinds whose columns can be read as targets other than classes.
TARGET_KINDS: dict[str, Callable[[str, TargetColumns], Source]] = {
    "manifest": lambda location, wanted: open_manifest(_file(location), wanted=wanted),
    "parquet": lambda location, wanted: open_parquet(_existing(location), wanted=wanted),
    "array": lambda location, wanted: open_array(_file(location), wanted=wanted),
}
_FILE_KINDS = {".csv": "manifest", ".tsv": "manifest", ".npy": "array", ".npz": "array"}


def open_source(
    location: str,
    *,
    kind: str = "auto",
    test_location: str | None = None,
    download: bool = False,
    wanted: TargetColumns | None = None,
) -> Source:
    """The images at `location`, with labels (or targets, where they are wanted) and splits where there are any.

    Args:
        location: a folder, the URL of a folder of shards, a .csv, .parquet, .npy or .npz file, "digits", or
            "torchvision:NAME[@ROOT]".
        kind: a name in `KINDS`, or "auto" to go by what is there.
        test_location: a second source of the same kind. It becomes the test split, and the first the train
            split; classes are matched by name.
        download: whether torchvision may fetch a named set that is not there.
        wanted: columns to read as targets; the source has no class labels then.

    Raises:
        UserError: nothing there, unreadable, of no known kind, not of the kind named, or of one without columns of
            targets.
    """
    if kind not in ("auto", *KINDS):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"kind={kind} is not a kind of data source. Allowed are auto, {', '.join(KINDS)}.{hint}")
    if wanted is not None:
        kind = _target_kind(location, kind)
        first = TARGET_KINDS[kind](location, wanted)
        if test_location is None:
            return first
        test = TARGET_KINDS[kind](test_location, wanted)
        targets, names = join_targets(first, test)
        bare = join_test(*(replace(each, targets=None, target_names=()) for each in (first, test)))
        return replace(bare, targets=targets, target_names=names)
    first = _open_auto(location, download) if kind == "auto" else KINDS[kind](location, download)
    if test_location is None:
        return first
    if first.kind == "digits":
        raise UserError("The digits have a test split of their own: leave the second, test source out.")
    return join_test(first, KINDS[first.kind](test_location, download))


def is_unindexed(location: str, *, kind: str = "auto") -> bool:
    """Whether this is a folder of shards that has to be indexed before it can be opened."""
    if kind not in ("auto", "shards"):
        return False
    if is_url(location):
        return not open_folder(location).has(INDEX_FILE)
    path = Path(location).expanduser()
    is_folder = os.path.isdir(path)  # as a question: False for any path there cannot be
    return is_folder and not (path / INDEX_FILE).is_file() and (kind == "shards" or _holds_shards(path))


def _open_auto(location: str, download: bool) -> Source:
    if location == "digits":
        return open_digits()
    if is_url(location):
        return open_shards(location)
    if location.startswith("torchvision:"):
        return open_torchvision(location, download=download)
    path = _existing(location)
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix in _FILE_KINDS:
        return KINDS[_FILE_KINDS[suffix]](location, download)
    if suffix == ".parquet":
        return open_parquet(path) if "image" in parquet_columns(path, ()) else open_manifest(path)
    if suffix in IMAGE_EXTENSIONS:
        raise UserError(f"{path} is a single image. Name the folder that holds it.")
    raise UserError(
        f"{path} is of no kind read here (its name ends in {suffix or 'no extension'}). Name a folder of "
        "images, a .csv or .parquet file, or a .npy or .npz file."
    )


def _target_kind(location: str, kind: str) -> str:
    """What the source is, among kinds that hold columns of targets.

    Raises:
        UserError: it is another.
    """
    allowed = "a CSV or Parquet manifest, Parquet files of images, or a .npz with an entry a target"
    if kind == "auto":
        path = (
            None
            if is_url(location) or location.startswith("torchvision:") or location == "digits"
            else _existing(location)
        )
        suffix = "" if path is None else path.suffix.lower()
        if path is not None and path.is_dir() and parquet_files(path) and not _holds_shards(path):
            kind = "parquet"
        elif path is not None and suffix == ".parquet":
            kind = "parquet" if "image" in parquet_columns(path, ()) else "manifest"
        else:
            kind = _FILE_KINDS.get(suffix, "auto")
    if kind not in TARGET_KINDS:
        what = location if kind == "auto" else f"{location} (read as {kind})"
        raise UserError(f"{what} has no columns of targets, which data.targets asks for; name {allowed}")
    return kind


def _open_folder(path: Path) -> Source:
    if _holds_shards(path):
        return open_shards(str(path))
    tables = parquet_files(path)
    if not tables:
        return open_images(path, "auto")
    with os.scandir(path) as entries:
        loose = [entry.name for entry in entries if Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS]
    if loose:
        raise UserError(
            f"{path} holds Parquet files ({tables[0].name}) as well as images ({loose[0]}). Say which is "
            "meant with kind=parquet or kind=flat, or name the Parquet file itself."
        )
    return open_parquet(path)


def _holds_shards(path: Path) -> bool:
    """An index of shards, or tars that do not merely lie beside images and folders of them."""
    if (path / INDEX_FILE).is_file():
        return True
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    extensions = {os.path.splitext(entry.name)[1].lower() for entry in visible}
    return ".tar" in extensions and not extensions & IMAGE_EXTENSIONS and not any(entry.is_dir() for entry in visible)


def _folder(location: str) -> Path:
    path = _existing(location)
    if not path.is_dir():
        raise UserError(f"{path} is a file, but a folder of images is wanted. Name its folder, or use kind=auto.")
    return path


def _file(location: str) -> Path:
    path = _existing(location)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a file is wanted. Name the file in it, or use kind=auto.")
    return path


def _existing(location: str) -> Path:
    if not location.strip():
        raise UserError("No data source is named. Give a folder, a file, digits, or torchvision:NAME.")
    path = Path(location).expanduser()
    try:
        path.stat()
    except ValueError as error:  # a zero byte in the name
        raise UserError(f"{location!r} is not a path: {error}.") from error
    except OSError as error:
        raise UserError(_why_unreachable(path, error)) from error
    return path


def _why_unreachable(path: Path, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
        return (
            f"The path {str(path)[:60]}... is longer than this file system allows: its longest part has "
            f"{len(os.fsencode(longest))} bytes, 255 are allowed. Give the folder a shorter name."
        )
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return f"{path} cannot be reached: {error.strerror}. Check its permissions."
    reached = next((parent for parent in path.parents if parent.is_dir()), None)
    missing = f"There is no {path}."
    if reached is None:
        return f"{missing} Check its spelling."
    step = path.relative_to(reached).parts[0]
    siblings = sorted(entry.name for entry in reached.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(step, siblings, n=1)
    if near:
        return f"{missing} Did you mean {reached / near[0]}?"
    where = ", ".join(siblings[:8]) + (", ..." if len(siblings) > 8 else "")
    return f"{missing} {reached.resolve()} holds {where or 'nothing'}."
