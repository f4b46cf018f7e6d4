"""The check of the place where runs are written: space, writing that stays written, renaming as a whole, memory maps.

Works in a temporary folder that it takes away; an error of the system is told by whoever called.
"""

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from ssl_ft.checkpoint import write_atomically
from ssl_ft.doctor.finding import Finding

# A ResNet-18's run: two checkpoints with optimizer, the encoder, pictures, rows.
_LEAST_FREE_MB = 1000
_WRITTEN_MB = 64
# Slower than this, a checkpoint of 130 MB (ResNet-18 with AdamW) stops the training for over six seconds.
_SLOW_MB_S = 20


def check_disk(folder: Path) -> Finding:
    """Whether runs can be written and resumed from `folder`, or from where it would be made."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    # A place that cannot be written shows before its space is asked for: some of those have none by their nature.
    with tempfile.TemporaryDirectory(prefix=".ssl-ft-doctor-", dir=place) as name:
        free = shutil.disk_usage(name).free / 2**20
        if free < _LEAST_FREE_MB:
            measured = f"{free:,.0f} MiB free in {place}, a run takes up to {_LEAST_FREE_MB:,}"
            return Finding("disk", "fail", measured, "free some space, or name another place with folder= and out=")
        pace = _write(Path(name) / "written")
        problems = [] if pace is not None else ["what was written is not what is read"]
        problems += [] if _replaces_as_a_whole(Path(name) / "replaced") else ["a file is not replaced as a whole"]
        problems += [] if _maps(Path(name) / "mapped.npy") else ["a memory map does not keep what is written to it"]
    if problems:
        advice = "do not train into this place: runs could not be resumed. Name another with folder= and out="
        return Finding("disk", "fail", f"{place}: {'; '.join(problems)}", advice)
    assert pace is not None, "a pace is known where nothing is wrong"
    measured = (
        f"{free / 2**10:,.1f} GiB free in {place}, {pace:,.0f} MB/s written to disk, renames and memory maps work"
    )
    advice = "slow: raise save_every, or write runs to a local disk" if pace < _SLOW_MB_S else ""
    return Finding("disk", "pass", measured, advice)


def _write(path: Path) -> float | None:
    """MB/s of a file written and flushed to disk; None where it reads back otherwise."""
    # Distinct words: a file system that compresses is not to be flattered.
    words = np.arange(_WRITTEN_MB * 2**17, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    content = (words ^ (words >> np.uint64(29))).tobytes()
    start = time.monotonic()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - start
    if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(content).digest():
        return None
    return len(content) / 1e6 / max(seconds, 1e-6)


def _replaces_as_a_whole(path: Path) -> bool:
    """Whether a reader sees the old file or the new, and a write that breaks off leaves the old one."""
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, lambda partial: partial.write_bytes(b"newer"))
        if (reader.read(), path.read_bytes()) != (b"old", b"newer"):
            return False

    def break_off(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise InterruptedError

    try:
        write_atomically(path, break_off)
    except InterruptedError:
        return path.read_bytes() == b"newer" and [each.name for each in path.parent.glob(".*")] == []
    return False


def _maps(path: Path) -> bool:
    """Whether an array written through a memory map is there when the file is read."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(1024, 64, 64))
    mapped[:] = np.arange(64, dtype=np.uint8)
    mapped[512, 7] = 255
    mapped.flush()
    wanted = np.tile(np.arange(64, dtype=np.uint8), (1024, 64, 1))
    wanted[512, 7] = 255
    return bool(np.array_equal(np.load(path), wanted))
