"""Freed memory goes back to the system, though what is still in use lies between."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

_WORK = """
import resource
from pathlib import Path

from ssl_ft.freed import give_back


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


blocks = [bytes(40_000) for _ in range(8000)]
kept = blocks[::100]
before = resident_mb()
del blocks
freed = resident_mb()
give_back()
print(before - freed, freed - resident_mb(), len(kept))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts resident pages as Linux tells them")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps what is freed")
def test_what_lies_between_blocks_in_use_is_given_back():
    done = subprocess.run([sys.executable, "-c", _WORK], capture_output=True, text=True, check=True)
    by_itself, given_back, kept = (float(word) for word in done.stdout.split())
    assert kept == 80
    assert by_itself < 100
    assert given_back > 200  # of 305 MiB
