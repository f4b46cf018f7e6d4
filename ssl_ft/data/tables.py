"""Parquet files that hold encoded images beside their labels, and the table columns that manifests share with them.

Manifests, whose rows name image files, stand in `manifests`.
"""

import bisect
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from ssl_ft.data.images import DamagedImage
from ssl_ft.data.listing import (
    Source,
    canonical_split,
    encode_named_labels,
    encode_splits,
    sample_content,
    sample_divisor,
)
from ssl_ft.data.targets import TargetColumns, encode_targets, missing_columns, with_targets
from ssl_ft.errors import UserError

# Encoded images up to this size are held in memory; larger sets are read one row group at a time.
HELD_BYTES = 2**30
_CACHED_GROUPS = 8

SPLIT_FILE = re.compile(r"(train|val|valid|validation|test)([-_.]\d.*)?", re.IGNORECASE)
Columns = dict[str, Sequence[object]]


def open_parquet(path: Path, *, wanted: TargetColumns | None = None) -> Source:
    """Parquet with encoded images in a column `image`: bytes, or a struct {bytes, path} as on the Hugging Face hub.

    Optional columns: label, label_name, path, split. A folder holds one or more such files; those called
    train, val (valid, validation) or test, with or without a shard number (train-00000-of-00002.parquet),
    give the splits.

    Args:
        path: the file, or the folder of them.
        wanted: columns to read as targets, instead of labels.

    Raises:
        UserError: no such files or columns, no rows, files with and without a split name side by side, or targets that
            are none.
    """
    paths = parquet_files(path) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"There are no .parquet files in {path}. Name the file, or the folder that holds them.")
    tables = [_ParquetImages(file) for file in paths]
    starts = list(accumulate((table.rows for table in tables), initial=0))
    if not starts[-1]:
        raise UserError(f"{path} holds no rows. Name a Parquet file with at least one image.")
    if wanted is None:
        values = [value for table in tables for value in table.column("label")]
        class_words = [value for table in tables for value in table.class_words()]
        labels, classes, notes = encode_named_labels(values, class_words, str(path))
    else:
        labels, classes, notes = None, (), ()
    large = [table.path.name for table in tables if not table.is_held]
    if large:
        notes += (f"{', '.join(large[:5])}: too large to hold in memory, read one row group at a time.",)
    divisor = sample_divisor(sum(table.stored_bytes for table in tables))

    def locate(index: int) -> tuple[_ParquetImages, int]:
        file = bisect.bisect_right(starts, index) - 1
        return tables[file], index - starts[file]

    def read(index: int) -> bytes:
        table, row = locate(index)
        return table.read(row)

    def evidence(index: int) -> bytes:
        table, row = locate(index)
        return table.evidence(row, divisor)

    source = Source(
        kind="parquet",
        location=str(path),
        names=_row_names(tables),
        read=read,
        evidence=evidence,
        labels=labels,
        class_names=classes,
        splits=encode_splits(_file_splits(path, tables), str(path)),
        notes=notes,
    )
    if wanted is None:
        return source
    parts = [target_values(table.path, wanted) for table in tables]
    joined = [[value for part in parts for value in part[place]] for place in range(len(wanted.names))]
    return with_targets(source, encode_targets(joined, wanted, where=str(path)))


def target_values(path: Path, wanted: TargetColumns) -> list[list[object]]:
    """The columns of targets of one file, as Python values.

    Raises:
        UserError: one is not there, or there twice, or the file is damaged.
    """
    file = open_table(path)
    problem = missing_columns(wanted, file.schema_arrow.names, where=str(path))
    if problem:
        raise UserError(problem)
    return list(_values(path, file, list(wanted.names)).values())


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files directly in `folder`, hidden ones left out, ordered by name."""
    found = [file for file in folder.iterdir() if file.suffix.lower() == ".parquet"]
    return sorted((file for file in found if not file.name.startswith(".")), key=lambda file: os.fsencode(file.name))


def parquet_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """Those of the `wanted` columns that the file has, as Python values; every name, without values, for no `wanted`.

    Raises:
        UserError: not a readable Parquet file.
    """
    file = open_table(path)
    if not wanted:
        return dict.fromkeys(file.schema_arrow.names, ())
    present = [name for name in wanted if name in file.schema_arrow.names]
    return dict(_values(path, file, present))


def _values(path: Path, file: Any, columns: list[str]) -> dict[str, list[Any]]:
    """Columns of an open file, nested ones by the name of the whole, as Python values; damage is a `UserError`."""
    with _damage_told(path):
        table = file.read(columns=columns)
        return {name: table.column(name).to_pylist() for name in table.column_names}


@contextmanager
def _damage_told(path: Path | str) -> Iterator[None]:
    """Turns what Arrow raises on damaged bytes, which its header and footer do not show, into a `UserError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} cannot be read as Parquet: {first} Write it again, or name another file.") from error


class _ParquetImages:
    """One file: its images, held in memory or read by row groups of which the last few are kept, and its columns."""

    def __init__(self, path: Path) -> None:
        self._file = open_table(path)
        self._schema = self._file.schema_arrow
        if "image" not in self._schema.names:
            raise UserError(
                f"{path} has no column `image`; its columns are {', '.join(self._schema.names)}. Wanted is a "
                "column of encoded image bytes (or a column `path`, which makes it a manifest)."
            )
        self.path, self.rows = path, int(self._file.metadata.num_rows)
        self._leaf = bytes_leaf(path, self._schema.field("image").type)
        groups = row_groups(self._file.metadata, self._leaf)
        self.stored_bytes = sum(size for _, size in groups)
        self._starts = list(accumulate((rows for rows, _ in groups), initial=0))
        self._recent: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.is_held = self.stored_bytes <= HELD_BYTES
        with _damage_told(path):
            self._held = image_column(self._file.read(columns=[self._leaf])) if self.is_held else None

    def read(self, row: int) -> bytes:
        """Encoded bytes; a null row is an empty file, to be found and listed when it is decoded.

        Raises:
            DamagedImage: its row group cannot be read.
        """
        if self._held is not None:
            return self._held[row].as_py() or b""
        group = bisect.bisect_right(self._starts, row) - 1
        with self._lock:  # a Parquet file is read by one thread at a time
            if group not in self._recent:
                self._recent[group] = self._load(group)
                if len(self._recent) > _CACHED_GROUPS:
                    self._recent.popitem(last=False)
            self._recent.move_to_end(group)
            column = self._recent[group]
        return column[row - self._starts[group]].as_py() or b""

    def _load(self, group: int) -> Any:
        import pyarrow as pa

        try:
            return image_column(self._file.read_row_group(group, columns=[self._leaf]))
        except (pa.ArrowException, OSError) as error:
            raise DamagedImage(f"row group {group} of {self.path.name} cannot be read: {str(error)[:200]}") from error

    def evidence(self, row: int, divisor: int) -> bytes:
        if not self.is_held:
            return f"{self.stored_bytes} {row}".encode()  # a large file is not read through for a fingerprint
        return sample_content(self.read(row), divisor)

    def column(self, name: str) -> list[object]:
        """The column's values, or None for every row where there is no such column."""
        if name in self._schema.names:
            return _values(self.path, self._file, [name])[name]
        if name == "path" and self._leaf == "image.bytes":
            kind = self._schema.field("image").type
            if kind.get_field_index("path") >= 0:
                structs = _values(self.path, self._file, ["image.path"])["image"]
                return [None if entry is None else entry["path"] for entry in structs]
        return [None] * self.rows

    def class_words(self) -> list[object]:
        """What each row's class is called: by `label_name`, else by the schema's list of names, else None."""
        known = metadata_names(self._schema.metadata or {})
        if "label_name" in self._schema.names or not known:
            return self.column("label_name")
        return [
            known[value] if isinstance(value, int) and 0 <= value < len(known) else None
            for value in self.column("label")
        ]


def open_table(path: Path | str, file: IO[bytes] | None = None) -> Any:
    """A Parquet file, opened at its path or from a file that stands for it.

    Raises:
        UserError: it is none.
    """
    import pyarrow.parquet as pq

    with _damage_told(path):
        return pq.ParquetFile(file or path)


def image_column(table: Any) -> Any:
    """The encoded images of a table as one Arrow array of bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column("image")
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return column.cast(pa.large_binary()).combine_chunks()  # offsets of 64 bits: a group may pass 2 GiB


def bytes_leaf(path: Path | str, kind: Any) -> str:
    """Where in the column `image`, which has this Arrow type, the bytes are: the path of a Parquet column.

    Raises:
        UserError: it holds no bytes.
    """
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "image"
    raise UserError(
        f"{path}: the column `image` has type {kind}; wanted are encoded image bytes (binary, or a struct "
        "with `bytes`)."
    )


def row_groups(metadata: Any, leaf: str) -> list[tuple[int, int]]:
    """Rows of each row group, and the uncompressed bytes of the column at path `leaf` in it."""
    found = []
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        chunks = [group.column(index) for index in range(group.num_columns)]
        sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == leaf]
        found.append((int(group.num_rows), int(sum(sizes))))
    return found


def metadata_names(metadata: dict[bytes, bytes]) -> list[str]:
    """Class names from the schema's `label_names`, or from the features the Hugging Face hub writes there."""
    try:
        if b"label_names" in metadata:
            names = json.loads(metadata[b"label_names"])
        else:
            hub = json.loads(metadata.get(b"huggingface", b"{}"))
            names = hub.get("info", {}).get("features", {}).get("label", {}).get("names", [])
    except (ValueError, AttributeError):
        return []  # someone else's metadata under the same key
    return [str(name) for name in names] if isinstance(names, list) else []


def _row_names(tables: list[_ParquetImages]) -> list[str]:
    paths = [value for table in tables for value in table.column("path")]
    if all(paths) and all(count == 1 for count in Counter(paths).values()):
        return [str(value) for value in paths]
    return [f"{table.path.name}#{row}" for table in tables for row in range(table.rows)]


def _file_splits(path: Path, tables: list[_ParquetImages]) -> list[object]:
    """Each row's split: by its column `split`, else by the name of its file where a folder was opened."""
    values: list[object] = []
    for table in tables:
        match = SPLIT_FILE.fullmatch(table.path.stem) if path.is_dir() else None
        own = table.column("split")
        if match and not any(own):
            own = [canonical_split(match[1])] * table.rows
        values += own
    bare = [table.path.name for table in tables if not any(table.column("split"))]
    bare = [name for name in bare if not SPLIT_FILE.fullmatch(Path(name).stem)]
    if bare and any(values):
        raise UserError(
            f"{path}: some files say which split they are (train, val or test) and some do not "
            f"({', '.join(bare[:5])}). Rename them, add a column `split`, or name one file alone."
        )
    return values
