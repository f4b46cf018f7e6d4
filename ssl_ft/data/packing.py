"""Writing the images of any source into tar or Parquet shards, whole or not at all. Reading them stands in `shards`.

Files keep their bytes. Images are put in random order within their split: what lies together in a folder is often of
one class, and a window over such shards would hold few classes.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ssl_ft.data.folders import IMAGE_EXTENSIONS
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.indexing import build_index
from ssl_ft.data.listing import SPLIT_ALIASES, Source
from ssl_ft.data.permutation import Order, permute
from ssl_ft.data.places import is_url
from ssl_ft.data.shards import HELD_GROUP_BYTES
from ssl_ft.data.windows import WindowedOrder
from ssl_ft.errors import UserError
from ssl_ft.seeding import derive_seed

# Bytes of images in a row group of Parquet: enough for a fast read, few enough that a window of groups fits in memory.
GROUP_BYTES = 4 * 2**20

_AT_ONCE = 256  # images read ahead
_TAR_ROW_BYTES = 2048  # beside the image: two headers, a short description, and blanks
_SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"II": ".tif",
    b"MM": ".tif",
    b"BM": ".bmp",
    b"RIFF": ".webp",
}


@dataclass(frozen=True)
class PackOptions:
    """How shards are written.

    Attributes:
        layout: "tar" or "parquet".
        shard_bytes: about how large a shard is.
        white_level: value of 16-bit arrays that means white.
        max_damaged_share: share of images that cannot be read past which nothing is written.
        workers: threads that read.
    """

    layout: Literal["tar", "parquet"] = "tar"
    shard_bytes: int = 256 * 2**20
    white_level: int = 65535
    max_damaged_share: float = 0.01
    workers: int = 2


@dataclass(frozen=True)
class _Row:
    """An image on its way into a shard; label and class name are None where there is none."""

    name: str
    content: bytes
    label: int | None
    label_name: str | None
    split: str | None


def check_pack_folder(out: str) -> None:
    """Refuse a place that shards cannot be written to.

    Raises:
        UserError: a URL, or something is there already.
    """
    if is_url(out):
        raise UserError(f"pack={out} is a URL. Name a folder on this machine, and copy it there once it is written.")
    path = Path(out)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"pack={out} is there already, and nothing is overwritten. Name a folder that is not.")


def pack(
    source: Source, out: Path, options: PackOptions, *, on_progress: Callable[[int], None] | None = None
) -> list[tuple[str, str]]:
    """Write the source's images into shards with an index, in `out`, and give (name, reason) of those left out.

    Files are written as they are, also those that will turn out damaged; arrays become PNG files of the pixels that
    training would see. What cannot even be read is left out. Labels, class names, splits and names are kept; images are
    in random order within their split.

    Args:
        source: what to pack.
        out: a folder that does not exist, or is empty.
        options: how.
        on_progress: told the number of images done.

    Raises:
        UserError: `out` is taken, too many images cannot be read, or arrays have channels PNG cannot hold.
    """
    check_pack_folder(str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    left_out: list[tuple[str, str]] = []
    try:
        with closing(_ShardWriter(partial, source, options)) as writer:
            for done, row in enumerate(_rows(source, options, left_out), start=1):
                if row is not None:
                    writer.add(row)
                if on_progress is not None:
                    on_progress(done)
        build_index(str(partial))
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return left_out


def _rows(source: Source, options: PackOptions, left_out: list[tuple[str, str]]) -> Iterator[_Row | None]:
    """The images to write, split by split; None for one that was left out."""
    splits = [None] if source.splits is None else sorted(np.unique(source.splits).tolist())
    for split in splits:
        part = source if split is None else source.subset(np.flatnonzero(source.splits == split))
        order = _pack_order(part)

        def row_of(index: int, part: Source = part, split: str | None = split) -> _Row | None:
            try:
                content = _as_file(part.read(index), part.names[index], options)
            except (DamagedImage, OSError) as error:
                left_out.append((part.names[index], str(error)))
                return None
            label = None if part.labels is None or part.labels[index] < 0 else int(part.labels[index])
            return _Row(part.names[index], content, label, None if label is None else part.class_names[label], split)

        with ThreadPoolExecutor(max(1, options.workers)) as pool:
            for start in range(0, len(part), _AT_ONCE):
                places = torch.arange(start, min(start + _AT_ONCE, len(part)))
                images = order(places, num_items=len(part), key=derive_seed(0, "pack"))
                yield from pool.map(row_of, images.tolist())
                if len(left_out) > options.max_damaged_share * len(source):
                    raise _too_many(source, left_out, options)


def _pack_order(part: Source) -> Order:
    """Any order at all where images are read one by one; where whole row groups are, one that keeps to a window."""
    stretches = part.stretches
    window = 0 if stretches is None else stretches.images_within(HELD_GROUP_BYTES // 2)
    return permute if stretches is None or not window else WindowedOrder(stretches, window_images=window)


def _too_many(source: Source, left_out: list[tuple[str, str]], options: PackOptions) -> UserError:
    first = "; ".join(f"{name} ({reason})" for name, reason in left_out[:5])
    return UserError(
        f"{source.location}: {len(left_out)} of {len(source)} images could not be read, more than "
        f"data.max_damaged_share={options.max_damaged_share} allows: {first}. Mend or remove them, or raise the share; "
        "nothing was packed"
    )


def _as_file(raw: "bytes | NDArray[np.generic]", name: str, options: PackOptions) -> bytes:
    if isinstance(raw, bytes):
        return raw
    pixels = decode(raw, white_level=options.white_level)
    if pixels.shape[0] not in (1, 3):
        raise UserError(f"{name} has {pixels.shape[0]} channels, and PNG holds 1 or 3. Keep such images as arrays.")
    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


class _ShardWriter:
    """Opens a new shard when the split changes or the last one is full."""

    def __init__(self, folder: Path, source: Source, options: PackOptions) -> None:
        self._folder, self._source, self._options = folder, source, options
        self._shard: _TarShard | _ParquetShard | None = None
        self._split: str | None = None
        self._written: dict[str, int] = {}  # shards so far of each name
        self._num_bytes = self._number = 0

    def add(self, row: _Row) -> None:
        size = len(row.content) + (_TAR_ROW_BYTES if self._options.layout == "tar" else 0)
        is_full = self._num_bytes > 0 and self._num_bytes + size > self._options.shard_bytes
        if self._shard is None or is_full or row.split != self._split:
            self.close()
            self._shard = self._open(row.split)
        self._shard.add(row, self._number)
        self._num_bytes += size
        self._number += 1

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard, self._num_bytes = None, 0

    def _open(self, split: str | None) -> "_TarShard | _ParquetShard":
        # Splits of other names are told by each row alone: they might make no file name.
        stem = split if split is not None and split in SPLIT_ALIASES.values() else "shard"
        number = self._written[stem] = self._written.get(stem, -1) + 1
        self._split = split
        path = self._folder / f"{stem}-{number:06d}.{self._options.layout}"
        return _TarShard(path) if self._options.layout == "tar" else _ParquetShard(path, self._source)


class _TarShard:
    """A tar in the layout of webdataset: KEY.jpg (or what the image is), and KEY.json that describes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed when it is full

    def add(self, row: _Row, number: int) -> None:
        about = {"name": row.name, "label": row.label, "label_name": row.label_name, "split": row.split}
        known = {key: value for key, value in about.items() if value is not None}
        self._write(f"{number:012d}{_extension(row)}", row.content)
        self._write(f"{number:012d}.json", json.dumps(known).encode())

    def close(self) -> None:
        self._archive.close()
        _flush_to_disk(self._path)

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._archive.addfile(member, io.BytesIO(content))


class _ParquetShard:
    """A Parquet file with columns image, name and, where the source has them, label, label_name and split."""

    def __init__(self, path: Path, source: Source) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = {"image": pa.binary(), "name": pa.string()}
        fields |= {} if source.labels is None else {"label": pa.int64(), "label_name": pa.string()}
        fields |= {} if source.splits is None else {"split": pa.string()}
        self._path, self._schema = path, pa.schema(list(fields.items()))
        # Images are compressed already, and statistics would repeat whole images.
        short = [name for name in fields if name in ("label", "label_name", "split")]
        self._file = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=short, write_statistics=False
        )
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0

    def add(self, row: _Row, number: int) -> None:
        about = {"label": row.label, "label_name": row.label_name, "split": row.split}
        values = {"image": row.content, "name": row.name, **about}
        self._rows.append({name: values[name] for name in self._schema.names})
        self._num_bytes += len(row.content)
        if self._num_bytes >= GROUP_BYTES:
            self._write()

    def close(self) -> None:
        self._write()
        self._file.close()
        _flush_to_disk(self._path)

    def _write(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(
                pa.Table.from_pylist(self._rows, schema=self._schema), row_group_size=len(self._rows)
            )
        self._rows, self._num_bytes = [], 0


def _extension(row: _Row) -> str:
    """By content, for webdataset and people; we ourselves go by content alone."""
    for signature, extension in _SIGNATURES.items():
        if row.content.startswith(signature):
            return extension
    own = os.path.splitext(row.name)[1].lower()
    return own if own in IMAGE_EXTENSIONS else ".jpg"


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
