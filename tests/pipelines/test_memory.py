"""Memory of a pretraining of CIFAR-10's size, measured from outside as the largest resident set of its process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

_GIB = 2**30


@pytest.mark.slow
def test_pretraining_on_50000_small_photos_stays_below_two_gigabytes(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "pool.npz", images=images)
    places = [f"data={tmp_path / 'pool.npz'}", f"out={tmp_path / 'run'}", "device=cpu"]
    words = ["pretrain", "small-photos", *places, "duration=8 steps", "eval_every=2 steps"]
    process = subprocess.Popen([sys.executable, "-m", "ssl_ft", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    unit = 1 if sys.platform == "darwin" else 1024
    assert usage.ru_maxrss * unit < 2 * _GIB
