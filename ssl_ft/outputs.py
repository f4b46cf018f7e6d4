"""Tables that leave the package for users: features, predictions, neighbours, suggestions, as CSV, Parquet or .npz.

A file is written beside its place and moved there when it is whole. What stands in a row is decided by the stages.
"""

import csv
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError, short_path
from ssl_ft.runlog import write_text

FEATURE_ENDINGS = (".parquet", ".csv", ".npz")
# Rows of text in memory at a time where a .npz is put together.
_ROWS = 4096


def check_place(out: Path, *, example: str, endings: Sequence[str] = ()) -> Path:
    """The path of a file to write, found fit before hours of work are to be written there.

    Raises:
        UserError: a folder, a file in a folder that is not there, or another ending than those allowed.
    """
    if out.is_dir():
        raise UserError(f"out={short_path(out)} is a folder; name the file to write, such as {out / example}")
    if not out.parent.is_dir():
        raise UserError(
            f"out={short_path(out)}: there is no folder {short_path(out.parent)}; make it first, or write elsewhere"
        )
    if endings and out.suffix.lower() not in endings:
        raise UserError(
            f"out={short_path(out)}: the ending says which kind of file is written, and {out.suffix or 'none'!r} is "
            f"none of {', '.join(endings)}; name it such as {example}"
        )
    return out


def write_rows(
    out: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, number_format: str = ".6f"
) -> None:
    """Write a table: Parquet where the name ends in .parquet, else CSV.

    Args:
        out: the file; its folder is there.
        header: names of the columns.
        rows: one value a column; a column holds text, whole numbers, truth values or floats throughout.
        number_format: of floats in CSV.

    Raises:
        UserError: Parquet with two columns of one name, which most readers refuse.
    """
    if out.suffix.lower() != ".parquet":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *([_as_text(value, number_format) for value in row] for row in rows)])
        write_text(out, text.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise UserError(
            f"out={short_path(out)}: two columns would be called {twice[0]!r}, which Parquet's readers refuse; write a "
            "CSV, or rename that class"
        )
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    arrays = [pa.array(column) for column in columns]
    # In memory first, so that a file is there whole or not at all.
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(header)), buffer)
    partial = _partial(out)
    try:
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _as_text(value: object, number_format: str = ".6f") -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, number_format) if isinstance(value, float) else value


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Some rows of a table of features.

    Attributes:
        names: path of each image.
        features: float32 [N, D].
        labels: name of each image's class, "" for none; None where the source has no labels.
        splits: name of each image's split; None where the source has none.
    """

    names: Sequence[str]
    features: NDArray[np.float32]
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None

    def texts(self) -> dict[str, Sequence[str]]:
        """The columns of text, by name."""
        named = {"path": self.names, "label": self.labels, "split": self.splits}
        return {name: column for name, column in named.items() if column is not None}


class _Format(Protocol):
    """One kind of file: takes blocks of rows, and ends."""

    def add(self, rows: FeatureRows) -> None: ...
    def end(self) -> None: ...


class FeatureWriter:
    """Writes features block by block, so that memory does not grow with the images; use it as a context.

    Parquet: `path`, `label` and `split` where known, and `features`, a column of fixed-size lists of float32. CSV: one
    column a dimension, `feature_0` and on, with the digits that give the same float32 back. .npz: `paths`, `features`
    [N, D], and `labels`, `splits` as text; no pickle. Left by an error, nothing stays.

    Args:
        out: the file; its ending is one of `FEATURE_ENDINGS`.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.num_rows = out, 0
        self._partial = _partial(out)
        self._format: _Format | None = None
        self._stack = ExitStack()

    def add(self, rows: FeatureRows) -> None:
        """Write some rows; the first ones decide the columns."""
        if self._format is None:
            kinds: dict[str, Callable[[Path, FeatureRows, ExitStack], _Format]]
            kinds = {".parquet": _Parquet, ".csv": _Csv, ".npz": _Npz}
            self._format = kinds[self.out.suffix.lower()](self._partial, rows, self._stack)
        self._format.add(rows)
        self.num_rows += len(rows.names)

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._stack:
                if error is None and self._format is not None:
                    self._format.end()
            if error is None and self._format is not None:
                os.replace(self._partial, self.out)
        finally:
            self._partial.unlink(missing_ok=True)


class _Parquet:
    def __init__(self, path: Path, first: FeatureRows, stack: ExitStack) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        vector = pa.list_(pa.float32(), first.features.shape[1])
        fields = [*((name, pa.string()) for name in first.texts()), ("features", vector)]
        self._schema = pa.schema(fields)
        self._writer: Any = stack.enter_context(pq.ParquetWriter(path, self._schema))

    def add(self, rows: FeatureRows) -> None:
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(rows.features).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, rows.features.shape[1])
        # An absent label is null here, as it is for whoever reads a table with pandas or polars.
        texts = [pa.array([text or None for text in column], pa.string()) for column in rows.texts().values()]
        self._writer.write_table(pa.Table.from_arrays([*texts, vectors], schema=self._schema))

    def end(self) -> None:
        pass  # the stack closes the writer, which writes its footer


class _Csv:
    def __init__(self, path: Path, first: FeatureRows, stack: ExitStack) -> None:
        file = stack.enter_context(path.open("w", newline="", encoding="utf-8"))
        self._writer = csv.writer(file)
        self._writer.writerow([*first.texts(), *(f"feature_{d}" for d in range(first.features.shape[1]))])

    def add(self, rows: FeatureRows) -> None:
        for texts, values in zip(zip(*rows.texts().values(), strict=True), rows.features.tolist(), strict=True):
            self._writer.writerow([*texts, *(f"{value:.9g}" for value in values)])

    def end(self) -> None:
        pass


class _Npz:
    """Blocks wait in temporary files beside the place, as an .npy begins with the number of its rows."""

    def __init__(self, path: Path, first: FeatureRows, stack: ExitStack) -> None:
        self._path, self._dimensions, self._columns = path, first.features.shape[1], tuple(first.texts())
        self._numbers = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115
        texts = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        self._texts = stack.enter_context(texts)
        self._longest = [1] * len(self._columns)
        self._count = 0

    def add(self, rows: FeatureRows) -> None:
        self._numbers.write(np.ascontiguousarray(rows.features, "<f4").data)
        for texts in zip(*rows.texts().values(), strict=True):
            self._longest = [max(most, len(text)) for most, text in zip(self._longest, texts, strict=True)]
            self._texts.write(json.dumps(texts) + "\n")
            self._count += 1

    def end(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            self._numbers.seek(0)
            with archive.open("features.npy", "w", force_zip64=True) as member:
                _npy_header(member, "<f4", (self._count, self._dimensions))
                shutil.copyfileobj(self._numbers, member)
            for place, name in enumerate(self._columns):
                kind = f"<U{self._longest[place]}"
                self._texts.seek(0)
                with archive.open(f"{name}s.npy", "w", force_zip64=True) as member:
                    _npy_header(member, kind, (self._count,))
                    for start in range(0, self._count, _ROWS):
                        lines = (self._texts.readline() for _ in range(min(_ROWS, self._count - start)))
                        member.write(np.array([json.loads(line)[place] for line in lines], kind).tobytes())


def _npy_header(member: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_2_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
