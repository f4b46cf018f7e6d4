"""The disk check: passes in an ordinary folder, leaves nothing, fails where a run could not be written or resumed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.doctor import disk
from ssl_ft.doctor.examine import Circumstances, examine


def test_passes_and_leaves_nothing(tmp_path):
    finding = disk.check_disk(tmp_path / "runs" / "later")
    assert finding.verdict == "pass"
    assert str(tmp_path) in finding.measured
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_in_a_sentence():
    about = Circumstances(device="cpu", num_ranks=2, memory_mb=1, folder=Path("/proc/ssl_ft"))
    (finding,) = examine(["disk"], about, on_done=lambda: None)
    assert finding.verdict == "fail"
    assert "cannot be read or written" in finding.measured
    assert "folder=" in finding.advice


def test_a_full_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10 * 2**20))
    finding = disk.check_disk(tmp_path)
    assert finding.verdict == "fail"
    assert "10 MiB free" in finding.measured


def write_in_place(path: Path, write: object) -> None:
    """What a file system that does not rename over an open file comes to: the old file is overwritten."""
    write(path)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("target", "broken", "words"),
    [
        ("write_atomically", write_in_place, "not replaced as a whole"),
        ("_maps", lambda path: False, "memory map"),
        ("_write", lambda path: None, "not what is read"),
    ],
)
def test_a_disk_that_does_not_keep_its_word(tmp_path, monkeypatch, target, broken, words):
    monkeypatch.setattr(disk, target, broken)
    finding = disk.check_disk(tmp_path)
    assert finding.verdict == "fail"
    assert words in finding.measured


def test_what_is_lost_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "load", lambda path: np.zeros((1024, 64, 64), np.uint8))
    assert not disk._maps(tmp_path / "map.npy")
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"")
    assert disk._write(tmp_path / "file") is None
