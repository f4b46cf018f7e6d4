"""Images in tar or Parquet shards with an index, local or behind a URL: read by number, in memory that stays the same.

What an index is stands in `index_files`; it is built in `indexing`, and shards are written in `packing`.
"""

import itertools
import shlex
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ssl_ft.data.folders import MAX_FILE_BYTES
from ssl_ft.data.images import DamagedImage
from ssl_ft.data.index_files import ARRAYS, INDEX_FILE, INDEX_FOLDER, IndexFile
from ssl_ft.data.listing import LazyNames, Source
from ssl_ft.data.places import Folder, LocalFolder, open_folder
from ssl_ft.data.tables import bytes_leaf, image_column
from ssl_ft.data.windows import Stretches
from ssl_ft.errors import UserError

# Row groups of Parquet shards that stay in memory, in bytes: the images of a window lie in all of its groups.
HELD_GROUP_BYTES = 2**30
# Tars with more images than this are read as several stretches, so that no shard makes a window large.
_LONGEST_STRETCH = 65_536


def open_shards(location: str) -> Source:
    """The images of a folder of shards with an index; `location` is a path or a URL.

    Reading an image of a tar shard takes its bytes alone; of a Parquet shard its row group, the last of which are kept.
    Names are worked out when asked for, and labels and splits stay on disk.

    Raises:
        UserError: there is no index, it is damaged, or the shards are not those that were indexed.
    """
    folder = open_folder(location)
    index = _read_index(folder)
    arrays = {name: _map_array(folder, name, length) for name, length in index.arrays.items()}
    _check_values(folder, index, arrays)
    starts = np.concatenate([[0], np.cumsum([shard.num_images for shard in index.shards])]).astype(np.int64)
    images = (_TarImages if index.layout == "tar" else _ParquetImages)(folder, index, starts, arrays)
    return Source(
        kind="shards",
        location=location,
        names=LazyNames(int(starts[-1]), _Names(index, starts, arrays)),
        read=images.read,
        evidence=images.evidence,
        labels=arrays.get("labels"),
        class_names=index.class_names,
        splits=arrays.get("splits"),
        notes=tuple(f"{location}: {note}" for note in index.notes),
        stretches=images.stretches,
        identity=index.identity,
    )


def how_to_index(location: str) -> str:
    """What to type so that shards get an index."""
    return f"ssl-ft index {shlex.quote(f'data={location}')} data.kind=shards"


def _read_index(folder: Folder) -> IndexFile:
    present = folder.sizes()
    if not folder.has(INDEX_FILE):
        raise UserError(
            f"{folder.location} has no index of its shards yet ({INDEX_FILE}). Build it once: "
            f"{how_to_index(folder.location)}"
        )
    try:
        index = IndexFile.model_validate_json(folder.read(INDEX_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged_index(folder, f"{'.'.join(map(str, first['loc'])) or 'index.json'}: {first['msg']}") from error
    wrong = [
        f"{shard.name} is gone" if shard.name not in present else f"{shard.name} has other bytes"
        for shard in index.shards
        if present.get(shard.name) != shard.num_bytes
    ]
    if wrong:
        raise UserError(
            f"{folder.location} holds other shards than were indexed: {'; '.join(wrong[:5])}. Put them back, or remove "
            f"its folder {INDEX_FOLDER} and index anew: {how_to_index(folder.location)}"
        )
    return index


def _damaged_index(folder: Folder, why: str) -> UserError:
    return UserError(
        f"The index of {folder.location} is damaged: {why}. Remove its folder {INDEX_FOLDER} and build it anew: "
        f"{how_to_index(folder.location)}"
    )


def _map_array(folder: Folder, name: str, length: int) -> NDArray[Any]:
    if name not in ARRAYS:
        raise _damaged_index(folder, f"an array called {name} is not known")
    try:
        array = folder.map_array(f"{INDEX_FOLDER}/{name}.npy")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged_index(folder, f"{name}.npy cannot be read ({error})") from error
    if array.ndim == 0 or len(array) != length or not array.dtype.str.startswith(ARRAYS[name]):
        raise _damaged_index(
            folder, f"{name}.npy is {array.dtype} {list(array.shape)}, and {length} values belong there"
        )
    return array


def _check_values(folder: Folder, index: IndexFile, arrays: dict[str, NDArray[Any]]) -> None:
    """Refuse what would break our own assertions; a wrong offset shows as a damaged image when it is read."""
    count = sum(shard.num_images for shard in index.shards)
    needed = {"offsets", "sizes"} if index.layout == "tar" else {"groups"}
    needed |= {"labels"} if index.class_names else set()
    needed |= {"names", "name_ends"} if arrays.keys() & {"names", "name_ends"} else set()
    absent = sorted(needed - arrays.keys())
    if absent or not count:
        raise _damaged_index(folder, f"it lacks {', '.join(absent) or 'images'}")
    for name in arrays.keys() - {"groups", "names"}:
        if len(arrays[name]) != count:
            raise _damaged_index(folder, f"{name}.npy has {len(arrays[name])} values for {count} images")
    labels = arrays.get("labels")
    if labels is not None and not -1 <= labels.min() <= labels.max() < len(index.class_names):
        raise _damaged_index(folder, "labels.npy names classes that are not there")
    if index.layout == "parquet":
        groups = arrays["groups"]
        is_sound = groups.ndim == 2 and groups.shape[1] == 4 and len(groups) > 0 and groups[0, 0] == 0
        is_sound = is_sound and bool(np.all(np.diff(groups[:, 0], append=count) > 0)) and bool(groups.min() >= 0)
        if not is_sound or groups[:, 1].max() >= len(index.shards):
            raise _damaged_index(folder, "groups.npy does not add up")


class _Names:
    """Index -> name: the shard's, then the name within it, or the row where there is none."""

    def __init__(self, index: IndexFile, starts: NDArray[np.int64], arrays: dict[str, NDArray[Any]]) -> None:
        self._shards, self._starts = index.shards, starts
        self._ends, self._text = arrays.get("name_ends"), arrays.get("names")

    def __call__(self, image: int) -> str:
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        name = b""
        if self._ends is not None and self._text is not None:
            name = self._text[int(self._ends[image - 1]) if image else 0 : int(self._ends[image])].tobytes()
        within = f"/{name.decode('utf-8', 'backslashreplace')}" if name else f"#{image - int(self._starts[shard])}"
        return self._shards[shard].name + within


class _TarImages:
    """Images of tar shards by byte range."""

    def __init__(
        self, folder: Folder, index: IndexFile, starts: NDArray[np.int64], arrays: dict[str, NDArray[Any]]
    ) -> None:
        self._folder, self._shards, self._starts = folder, index.shards, starts
        self._offsets, self._sizes = arrays["offsets"], arrays["sizes"]
        cuts = [
            np.arange(a, b, _LONGEST_STRETCH) for a, b in itertools.pairwise(starts.tolist())
        ]  # none of an empty one
        self.stretches = Stretches(np.concatenate([*cuts, starts[-1:]]), np.zeros(sum(map(len, cuts)), np.int64))

    def read(self, image: int) -> bytes:
        """Encoded bytes of an image."""
        shard = self._shards[int(np.searchsorted(self._starts, image, side="right")) - 1]
        start, size = int(self._offsets[image]), int(self._sizes[image])
        if start < 0 or size > MAX_FILE_BYTES:
            raise DamagedImage(f"the index places {size} bytes at {start} of {shard.name}, which cannot be an image")
        try:
            content = self._folder.read_range(shard.name, start, size)
        except OSError as error:
            raise DamagedImage(f"{shard.name} cannot be read: {error.strerror}") from error
        if len(content) < size:
            raise DamagedImage(f"{shard.name} ends {size - len(content)} bytes before the image does")
        return content

    def evidence(self, image: int) -> bytes:
        """Its size."""
        return str(int(self._sizes[image])).encode()


class _Group:
    """A row group to be loaded by the first thread that needs it; the others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.column: Any = None


class _ParquetImages:
    """Images of Parquet shards by row group, the last of which stay in memory."""

    def __init__(
        self, folder: Folder, index: IndexFile, starts: NDArray[np.int64], arrays: dict[str, NDArray[Any]]
    ) -> None:
        self._folder, self._shards = folder, index.shards
        self._groups = np.array(arrays["groups"])  # small, and looked up for every image
        self._recent: OrderedDict[int, _Group] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self.stretches = Stretches(np.append(self._groups[:, 0], starts[-1]), np.maximum(1, self._groups[:, 3]))

    def read(self, image: int) -> bytes:
        """Encoded bytes of an image; a null row is an empty file, to be found and listed when it is decoded."""
        number = int(np.searchsorted(self._groups[:, 0], image, side="right")) - 1
        group = self._group(number)
        with group.lock:
            if group.column is None:
                group.column = self._load(number)
        row = image - int(self._groups[number, 0])
        if row >= len(group.column):
            raise DamagedImage("its row group is shorter than the index says")
        return group.column[row].as_py() or b""

    def evidence(self, image: int) -> bytes:
        """The bytes of its row group."""
        number = int(np.searchsorted(self._groups[:, 0], image, side="right")) - 1
        return str(int(self._groups[number, 3])).encode()

    def _group(self, number: int) -> _Group:
        with self._lock:
            if number not in self._recent:
                self._recent[number] = _Group()
                self._held_bytes += int(self._groups[number, 3])
            self._recent.move_to_end(number)
            while self._held_bytes > HELD_GROUP_BYTES and len(self._recent) > 1:
                oldest, _ = self._recent.popitem(last=False)
                self._held_bytes -= int(self._groups[oldest, 3])
            return self._recent[number]

    def _load(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        _, shard, group, _ = self._groups[number].tolist()
        name = self._shards[shard].name
        try:
            # Opened anew for each group: one file object cannot be read by several threads.
            with self._folder.open(name) as raw, pq.ParquetFile(raw) as file:
                leaf = bytes_leaf(name, file.schema_arrow.field("image").type)
                return image_column(file.read_row_group(group, columns=[leaf]))
        except (pa.ArrowException, OSError, KeyError, IndexError) as error:
            if not isinstance(self._folder, LocalFolder) and isinstance(error, OSError):
                raise UserError(
                    f"{self._folder.location}/{name} cannot be read: {error}. Start the command again once it can."
                ) from error
            raise DamagedImage(f"row group {group} of {name} cannot be read: {str(error)[:200]}") from error
