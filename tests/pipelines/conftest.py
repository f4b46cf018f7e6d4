"""Fixtures of tests that run stages: the command in this process, tiny runs to start from, and folders of images."""

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.cli import main

# Seconds on one thread, a little convnet of timm's own tests.
TINY = ["encoder=test_resnet", "duration=2 steps", "batch_size=8", "eval_images=16", "threads=1", "device=cpu"]


@dataclass(frozen=True)
class Outcome:
    """What a command gave back."""

    code: int
    out: str
    err: str


Command = Callable[[Sequence[str]], Outcome]


def run_command(words: Sequence[str]) -> Outcome:
    """`ssl-ft WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_command


def write_photos(
    folder: Path, *, classes: Sequence[str] = ("a", "b"), count: int = 12, size: int = 16, seed: int = 0
) -> Path:
    """`folder/CLASS/NN.png`, coloured noise, none like another."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `pretrain`, `probe` and `finetune`, and the photos they were made from."""
    top = tmp_path_factory.mktemp("tiny")
    photos = write_photos(top / "photos")
    common = ["threads=1", "device=cpu"]
    stages = [
        ["pretrain", f"data={photos}", *TINY, f"out={top / 'pretrain'}"],
        ["probe", f"encoder={top / 'pretrain'}", "labels=2", "draws=1", *common, f"out={top / 'probe'}"],
        ["finetune", f"encoder={top / 'pretrain'}", "labels=4", "min_steps=2", "epochs=1", *common,
         f"out={top / 'finetune'}"],
    ]  # fmt: skip
    for words in stages:
        outcome = run_command(words)
        assert outcome.code == 0, outcome.err
        assert outcome.out.splitlines()[-1] == words[-1].removeprefix("out="), "the last line names the run folder"
    return top


@pytest.fixture
def runs(tiny_runs: Path, tmp_path: Path) -> Path:
    """A copy of the tiny runs for this test to spoil."""
    return shutil.copytree(tiny_runs, tmp_path / "runs")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of twelve photos."""
    return write_photos(tmp_path / "photos")
