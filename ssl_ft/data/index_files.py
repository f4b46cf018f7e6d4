"""The index of a set of shards: what its files are, and how they are written without holding all rows in memory.

It is a folder `ssl_ft_index` beside the shards with NumPy arrays, to be mapped from disk, and `index.json`. Finding out
what belongs in it is the business of `indexing`, reading with it that of `shards`.
"""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ssl_ft.data.listing import canonical_split, encode_named_labels
from ssl_ft.errors import UserError

INDEX_FOLDER = "ssl_ft_index"
INDEX_FILE = f"{INDEX_FOLDER}/index.json"
# The arrays an index may have, with their types as NumPy writes them.
ARRAYS = {
    "offsets": "<i8",  # [N] of tar: where the image's bytes begin
    "sizes": "<u4",  # [N] of tar: how many they are
    "groups": "<i8",  # [G, 4] of Parquet: first image, shard, row group in it, bytes of its images
    "labels": "<i8",  # [N], as in `Source`
    "splits": "<U",  # [N], as in `Source`
    "name_ends": "<i8",  # [N], where each name ends in `names`
    "names": "|u1",  # names within the shard, UTF-8, one after the other
}

_BLOCK = 65_536  # rows handled at once
_MOST_CLASSES = 100_000
_MOST_SPLITS = 250
_LARGEST_SIZE = 2**32 - 1  # of an image, as far as the index can say; one so large is refused when it is read


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Strict):
    """One shard: its file name, bytes and images."""

    name: str
    num_bytes: int = Field(ge=0)
    num_images: int = Field(ge=0)


class IndexFile(_Strict):
    """`index.json`: the shards in order, the length of each array, and a digest of all but the notes."""

    format: Literal["ssl_ft shards 1"] = "ssl_ft shards 1"
    layout: Literal["tar", "parquet"]
    shards: tuple[Shard, ...] = Field(min_length=1)
    class_names: tuple[str, ...]
    arrays: dict[str, int]
    identity: str = ""
    notes: tuple[str, ...] = ()


class IndexWriter:
    """Takes images in order, shard by shard, and writes an index of them; use it as a context.

    Args:
        target: an empty folder.
        location: of the shards, for sentences.
        layout: of the shards.
    """

    def __init__(self, target: Path, *, location: str, layout: Literal["tar", "parquet"]) -> None:
        self.passed_over: Counter[str] = Counter()  # what -> how many
        self._target, self._location, self._layout = target, location, layout
        self._shards: list[Shard] = []
        self._groups: list[tuple[int, int, int, int]] = []
        self._classes: dict[tuple[object, object], int] = {}
        self._splits: dict[str, int] = {}
        # Labels and splits are numbered as they are met, and rewritten when all are known.
        types = ARRAYS | {"splits": "|u1"}
        self._columns = {name: _Column(target / f"{name}.npy", types[name]) for name in ARRAYS if name != "groups"}
        self._rows = {name: array("q") for name in self._columns if name != "names"}
        self._text = bytearray()
        self._seen: set[str] = set()
        self._count = self._shard_start = self._text_end = 0

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for column in self._columns.values():
            column.close()

    def add(self, *, name: object, label: object, word: object, split: object, place: tuple[int, int] = (0, 0)) -> None:
        """The next image.

        Args:
            name: what it is called within its shard; None where it is not.
            label: its class, a text or number; anything else is none.
            word: what that class is called.
            split: its split.
            place: (offset, size) in a tar.
        """
        self._add_name(name)
        row = {
            "offsets": place[0],
            "sizes": min(place[1], _LARGEST_SIZE),
            "labels": self._code(self._classes, (_plain(label), _plain(word)), "labels", _MOST_CLASSES),
            "splits": self._code(self._splits, canonical_split(str(split or "")), "splits", _MOST_SPLITS),
            "name_ends": self._text_end,
        }
        for key, value in row.items():
            self._rows[key].append(value)
        self._count += 1
        if len(self._rows["labels"]) >= _BLOCK:
            self._flush()

    def add_groups(self, groups: Sequence[tuple[int, int]]) -> None:
        """(rows, bytes of images) of each row group of the shard whose images are added next."""
        first = self._count
        for group, (num_rows, num_bytes) in enumerate(groups):
            if num_rows:
                self._groups.append((first, len(self._shards), group, num_bytes))
            first += num_rows

    def end_shard(self, name: str, num_bytes: int) -> None:
        """The images since the last call are those of this shard."""
        self._flush()
        self._seen.clear()
        self._shards.append(Shard(name=name, num_bytes=num_bytes, num_images=self._count - self._shard_start))
        self._shard_start = self._count

    def finish(self) -> int:
        """Write labels and splits in full, drop the arrays that hold nothing, and then `index.json`.

        Returns:
            The number of images.

        Raises:
            UserError: there are none, labels make no sense, or some images have a split and some do not.
        """
        for column in self._columns.values():
            column.close()
        if not self._count:
            raise UserError(f"The shards in {self._location} hold no images{self._passed_over()}.")
        classes, notes = self._finish_labels()
        used = {"labels"} if classes else set()
        used |= {"splits"} if self._finish_splits() else set()
        used |= {"names", "name_ends"} if self._text_end else set()
        used |= {"offsets", "sizes"} if self._layout == "tar" else set()
        lengths = {name: self._text_end if name == "names" else self._count for name in sorted(used)}
        for name in self._columns.keys() - used:
            (self._target / f"{name}.npy").unlink()
        if self._layout == "parquet":
            np.save(self._target / "groups.npy", np.array(self._groups, np.int64))
            lengths["groups"] = len(self._groups)
        if self.passed_over:
            notes.append(f"the shards hold more than images{self._passed_over()}.")
        index = IndexFile(
            layout=self._layout,
            shards=tuple(self._shards),
            class_names=classes,
            arrays=lengths,
            notes=tuple(notes),
        )
        self._write(index.model_copy(update={"identity": self._identity(index)}))
        return self._count

    def _add_name(self, name: object) -> None:
        text = name.strip() if isinstance(name, str) else ""
        while text in self._seen:  # the second of two equal names in one shard
            text += f"#{self._count - self._shard_start}"
        if text:
            self._seen.add(text)
            encoded = text.encode("utf-8", "backslashreplace")  # tars may hold names that are no text
            self._text += encoded
            self._text_end += len(encoded)

    def _flush(self) -> None:
        for name, values in self._rows.items():
            self._columns[name].extend(np.array(values, np.int64))
            del values[:]
        self._columns["names"].extend(np.frombuffer(bytes(self._text), np.uint8))
        self._text.clear()

    def _code(self, codes: dict[Any, int], key: Any, what: str, most: int) -> int:
        code = codes.setdefault(key, len(codes))
        if code >= most:
            raise UserError(
                f"The shards in {self._location} hold more than {most} different {what}, so they are something else "
                f"(such as {str(key)[:80]}). Write them under another name."
            )
        return code

    def _finish_labels(self) -> tuple[tuple[str, ...], list[str]]:
        values, words = ([pair[side] for pair in self._classes] for side in (0, 1))
        labels, classes, _ = encode_named_labels(values, words, self._location)
        if labels is None:
            return (), []
        bare = 0
        for block in _blocks(self._target / "labels.npy"):
            block[:] = labels[block]
            bare += int((block < 0).sum())
        return classes, [f"{bare} of {self._count} images have no label."] if bare else []

    def _finish_splits(self) -> bool:
        """Put the names in the place of their numbers; False where no image has a split."""
        if set(self._splits) == {""}:
            return False
        if "" in self._splits:
            found = ", ".join(sorted(self._splits)[1:6])
            raise UserError(
                f"{self._location}: some images say which split they are in ({found}) and some do not. Name a split in "
                "every sample, or in the names of all shards, or nowhere."
            )
        path = self._target / "splits.npy"
        codes = path.rename(path.with_name("codes.npy"))
        names = np.array(list(self._splits))
        column = _Column(path, names.dtype.str)
        for block in _blocks(codes):
            column.extend(names[block])
        column.close()
        codes.unlink()
        return True

    def _identity(self, index: IndexFile) -> str:
        digest = hashlib.sha256(index.model_dump_json(exclude={"notes", "identity"}).encode())
        for name in index.arrays:
            with (self._target / f"{name}.npy").open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _write(self, index: IndexFile) -> None:
        with (self._target / "index.json").open("w", encoding="utf-8") as file:
            file.write(index.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _passed_over(self) -> str:
        found = ", ".join(f"{count} {what}" for what, count in self.passed_over.most_common(6))
        return f"; passed over were {found}" if found else ""


class _Column:
    """A .npy file of one dimension, written block by block; its header is written again when the length is known."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype, self._count = np.dtype(dtype), 0
        self._file = path.open("wb")
        self._write_header()

    def extend(self, values: NDArray[Any]) -> None:
        self._file.write(values.astype(self._dtype).tobytes())
        self._count += len(values)

    def close(self) -> None:
        if self._file.closed:
            return
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() + self._count * self._dtype.itemsize == end, "headers have room for any length"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _plain(value: object) -> object:
    """A label as text or number; None for anything that is neither."""
    if isinstance(value, str):
        return value.strip() or None
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _blocks(path: Path) -> Iterator[NDArray[Any]]:
    """Blocks of a .npy file of one dimension, which may be changed in place."""
    mapped = np.load(path, mmap_mode="r+", allow_pickle=False)
    for start in range(0, len(mapped), _BLOCK):
        yield np.asarray(mapped[start : start + _BLOCK])
    mapped.flush()
