"""A folder of files, on this machine or behind a URL that fsspec reads: its files, ranges of their bytes, arrays in it.

What the files mean stands elsewhere. Nothing is fetched before it is asked for, and only files directly in the folder
are seen.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError

# Shards that stay open for reading: more than a window of shards usually has, far fewer than a process may open.
_OPEN_FILES = 64
_ATTEMPTS = 3
_COPY_BYTES = 4 * 2**20
_URL = re.compile(r"[A-Za-z][\w+.:-]*://")


class _Descriptor:
    """An open file, closed when the last thread that reads it lets it go."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class LocalFolder:
    """A folder on this machine; it may be read from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.location, self.path = str(path), path
        self._descriptor = lru_cache(_OPEN_FILES)(lambda name: _Descriptor(os.open(path / name, os.O_RDONLY)))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file directly in the folder, by name; hidden files are left out."""
        with os.scandir(self.path) as entries:
            return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.startswith(".")}

    def has(self, name: str) -> bool:
        """Whether there is such a file in the folder, or below it."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """The whole file."""
        return (self.path / name).read_bytes()

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a file from `start`; fewer where it ends before.

        Raises:
            OSError: it is not there or cannot be read.
        """
        descriptor = self._descriptor(name)
        parts: list[bytes] = []
        while size > 0 and (part := os.pread(descriptor.number, size, start)):
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """The file, for reading from its start."""
        return open(self.path / name, "rb")

    def map_array(self, name: str) -> NDArray[Any]:
        """A .npy file mapped from disk, not to be written to.

        Raises:
            ValueError: it is none, or is cut short.
        """
        mapped: NDArray[Any] = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped)

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """An empty folder to fill, which is in the place of `name` afterwards; on failure nothing is left."""
        partial = self.path / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            partial.rename(self.path / name)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


class RemoteFolder:
    """A folder behind a URL such as s3://bucket/shards; it may be read from several threads at once.

    Raises:
        UserError: fsspec, or what it needs for this kind of URL, is not installed.
    """

    def __init__(self, location: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise UserError(
                f"{location} is a URL, and URLs are read through fsspec, which is not installed: "
                "pip install 'ssl_ft[remote]', or name a folder on this machine"
            ) from error
        self.location = location
        try:
            self._files, self._root = fsspec.core.url_to_fs(location)
        except Exception as error:  # an unknown kind of URL, a missing package, credentials: each raises its own
            raise UserError(f"{location} cannot be opened: {_first_line(error)}") from error

    def sizes(self) -> dict[str, int]:
        """Bytes of each file directly in the folder, by name; hidden files are left out."""
        try:
            self._files.invalidate_cache()
            entries = self._files.ls(self._root, detail=True)
        except Exception as error:
            raise UserError(f"{self.location} cannot be listed: {_first_line(error)}. Check the URL.") from error
        named = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}
        return {name: int(entry["size"]) for name, entry in named.items() if not name.startswith(".")}

    def has(self, name: str) -> bool:
        """Whether there is such a file in the folder, or below it."""
        return bool(self._files.isfile(self._path(name)))

    def read(self, name: str) -> bytes:
        """The whole file."""
        return bytes(self._files.cat_file(self._path(name)))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a file from `start`; fewer where it ends before.

        Raises:
            UserError: it could not be read three times in a row. A network that fails is no damaged image: replacing
                what it did not bring would give another training each time.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return bytes(self._files.cat_file(self._path(name), start=start, end=start + size))
            except Exception as error:
                if attempt + 1 == _ATTEMPTS or isinstance(error, FileNotFoundError):
                    raise UserError(
                        f"{self.location}/{name} cannot be read: {_first_line(error)}. Start the command again once it "
                        "can; a training goes on from its last checkpoint."
                    ) from error
                time.sleep(2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """The file, for reading from its start."""
        file: AbstractContextManager[IO[bytes]] = self._files.open(self._path(name), "rb")
        return file

    def map_array(self, name: str) -> NDArray[Any]:
        """A .npy file, copied into a nameless temporary file and mapped from there.

        Raises:
            ValueError: it is none, or is cut short.
        """
        with tempfile.TemporaryFile() as copy:
            with self.open(name) as source:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
            copy.seek(0)
            version = np.lib.format.read_magic(copy)
            if version != (1, 0):
                raise ValueError(f"its format is {version}")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(copy)
            if is_fortran or dtype.hasobject:
                raise ValueError("it holds no plain numbers")
            # The mapping keeps the file's content after the file is closed, which takes its last name away.
            return np.asarray(np.memmap(copy, dtype=dtype, mode="r", offset=copy.tell(), shape=shape))

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """An empty folder to fill, whose files are then copied to `name`, those that end in .json last."""
        with tempfile.TemporaryDirectory() as local:
            yield Path(local)
            files = sorted(Path(local).iterdir(), key=lambda file: file.suffix == ".json")
            try:
                self._files.makedirs(self._path(name), exist_ok=True)
                for file in files:
                    self._files.put_file(str(file), self._path(f"{name}/{file.name}"))
            except Exception as error:
                raise UserError(
                    f"{self.location}/{name} cannot be written: {_first_line(error)}. Index the shards where you may "
                    f"write, and copy the folder {name} to them."
                ) from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


Folder = LocalFolder | RemoteFolder


def is_url(location: str) -> bool:
    """Whether a location is a URL and not a path."""
    return _URL.match(location) is not None


def open_folder(location: str) -> Folder:
    """The folder at a path or URL.

    Raises:
        UserError: a URL, and fsspec or what it needs is not installed.
    """
    return RemoteFolder(location) if is_url(location) else LocalFolder(Path(location))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
