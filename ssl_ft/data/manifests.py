"""Manifests: CSV or Parquet tables whose rows name image files, with labels and splits where known."""

import csv
import errno
import os
from collections import Counter
from pathlib import Path

from ssl_ft.data.folders import IMAGE_EXTENSIONS, printable_names, read_file
from ssl_ft.data.listing import Source, encode_named_labels, encode_splits
from ssl_ft.data.tables import Columns, parquet_columns, target_values
from ssl_ft.data.targets import TargetColumns, encode_targets, missing_columns, with_targets
from ssl_ft.errors import UserError

_COLUMNS = ("path", "label", "label_name", "split")


def open_manifest(path: Path, *, wanted: TargetColumns | None = None) -> Source:
    """Rows of a CSV (comma, semicolon or tab) or Parquet file with columns path[, label][, label_name][, split].

    Paths are relative to the manifest's own folder, or absolute. A blank label means unlabelled.

    Args:
        path: the manifest.
        wanted: columns to read as targets, instead of labels.

    Raises:
        UserError: columns missing, no rows, files missing or of unsupported type, a path named twice, targets that are
            none.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    read = ("path", "split") if wanted is not None else _COLUMNS
    columns, lines = (parquet_columns(path, read), None) if is_parquet else _csv_columns(path, wanted)
    if "path" not in columns:
        found = parquet_columns(path, ()) if is_parquet else columns
        raise UserError(
            f"The manifest {path} has no column `path`; its columns are {', '.join(found) or 'none'}. "
            "Wanted are path and, where known, label and split."
        )
    names = ["" if value is None else str(value).strip() for value in columns["path"]]
    if not names:
        raise UserError(f"The manifest {path} has no rows below its header. Add one row per image.")
    files = [os.path.join(path.parent, name) for name in names]
    sizes = _file_sizes(path, names, files)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"The manifest {path} names {len(twice)} files more than once (first: {twice[0]}). Keep one row per image."
        )
    blanks = [None] * len(names)
    if wanted is not None:
        values = target_values(path, wanted) if is_parquet else [columns[name] for name in wanted.names]
        columns = {key: value for key, value in columns.items() if key == "split"}
    labels, classes, notes = encode_named_labels(
        columns.get("label", blanks), columns.get("label_name", blanks), str(path)
    )
    source = Source(
        kind="manifest",
        location=str(path),
        names=printable_names(names),
        read=lambda i: read_file(files[i]),
        evidence=lambda i: str(sizes[i]).encode(),
        labels=labels,
        class_names=classes,
        splits=encode_splits(columns.get("split", blanks), str(path)),
        notes=notes,
    )
    if wanted is None:
        return source
    return with_targets(source, encode_targets(values, wanted, where=str(path), rows=lines))


def _csv_columns(path: Path, wanted: TargetColumns | None) -> tuple[Columns, list[int]]:
    """The columns by name, and the line of each row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            file.seek(0)
            rows = list(csv.reader(file, delimiter=separator, strict=True))
    except UnicodeDecodeError as error:
        raise UserError(f"The manifest {path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"The manifest {path} is not valid CSV: {error}. Check its quotes.") from error
    if not rows:
        raise UserError(f"The manifest {path} is empty. Wanted is a header (path,label,split) and one row per image.")
    names = [name.strip() for name in rows[0]]
    _check_header(path, names, wanted)
    body = [(number, row) for number, row in enumerate(rows[1:], start=2) if row]
    for number, row in body:
        if len(row) != len(names):
            raise UserError(
                f"The manifest {path}, line {number}, has {len(row)} fields where the header has "
                f"{len(names)}. Put texts that contain the separator in quotes."
            )
    lines = [number for number, _ in body]
    return {name: [row[index] for _, row in body] for index, name in enumerate(names)}, lines


def _check_header(path: Path, names: list[str], wanted: TargetColumns | None) -> None:
    read = [*_COLUMNS, *(() if wanted is None else wanted.names)]
    twice = [name for name in read if names.count(name) > 1]
    if twice:
        raise UserError(
            f"The manifest {path} has {names.count(twice[0])} columns called {twice[0]!r}; give each its own name."
        )
    problem = "" if wanted is None else missing_columns(wanted, names, where=f"The manifest {path}")
    if problem:
        raise UserError(problem)


def _file_sizes(manifest: Path, names: list[str], files: list[str]) -> list[int]:
    sizes, missing, problems = [], [], []
    for row, (name, file) in enumerate(zip(names, files, strict=True), start=1):
        shown = name if len(name) <= 80 else name[:77] + "..."
        try:
            sizes.append(os.stat(file).st_size)
        except (OSError, ValueError) as error:
            sizes.append(0)
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                problems.append(f"row {row}: {shown} is longer than this file system allows (255 bytes a name)")
            else:
                missing.append(shown or f"row {row}: blank")
            continue
        if not name or not os.path.isfile(file):
            problems.append(f"row {row}: {shown or 'blank'} is a folder or a device, not an image")
        elif os.path.splitext(name)[1].lower() not in IMAGE_EXTENSIONS:
            kinds = " ".join(sorted(IMAGE_EXTENSIONS))
            problems.append(f"row {row}: {shown} is not of a type read here ({kinds})")
    if missing:
        raise UserError(
            f"The manifest {manifest} names {len(missing)} files that are not there: {'; '.join(missing[:5])}"
            f"{'; ...' if len(missing) > 5 else ''}. Paths are read relative to {manifest.parent}, or "
            "absolute."
        )
    if problems:
        raise UserError(
            f"The manifest {manifest} has {len(problems)} rows that cannot be used: "
            f"{'; '.join(problems[:5])}. Correct or remove them."
        )
    return sizes
