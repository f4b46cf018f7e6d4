"""Ranks that come and go: under `torchrun` a killed one is started again, a lost node done without; one may stop all.

What a killed single process does is in `test_resume.py`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from ssl_ft import dist, interrupt
from ssl_ft.checkpoint import read_values
from ssl_ft.config import PretrainSettings
from tests.conftest import CHECKOUT
from tests.pipelines.conftest import run_command
from tests.pipelines.test_resume import digest, last_step
from tests.pipelines.training import settings_of, write_images
from tests.ranks import run_on_ranks

pytestmark = pytest.mark.dist


def _one_rank_hears(settings: PretrainSettings) -> int:
    """One rank's run, in which rank 1 alone is told to stop, at once."""
    from pipelines import pretrain

    dist.stop = lambda: None  # they part when the test does
    interrupt.StopWish.__bool__ = lambda self: dist.rank() == 1
    return pretrain.run(settings)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_finishes_nothing(tmp_path):
    settings = settings_of("simclr-convnet", write_images(tmp_path), out=str(tmp_path / "a"), devices=2)
    assert run_on_ranks(_one_rank_hears, settings, num_ranks=2) == [128 + signal.SIGTERM] * 2
    # Ranks agree every eighth step.
    assert read_values(tmp_path / "a/checkpoints/last.safetensors")["step"] == 8
    assert not (tmp_path / "a/result.json").exists()
    assert not (tmp_path / "a/encoder").exists()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 64 steps, in float64 and by small steps of SGD: where the number of ranks changes, all else is rounding.

    AdamW would make whole steps of it, and a batch norm on 16 images magnifies it from step to step.
    """
    images = write_images(tmp_path_factory.mktemp("elastic"))
    return [
        "pretrain", f"data={images}", "encoder=test_resnet", "size=64", "batch_size=16", "duration=64 steps",
        "precision=float64", "optim=sgd", "optim.rate=0.001", "save_every=4 steps", "log_every=1",
        "eval_every=200 steps", "eval_images=16", "threads=1", "device=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(words: list[str]) -> Path:
    """The undisturbed run on two ranks."""
    out = Path(words[1].removeprefix("data=")).parent / "whole"
    outcome = run_command([*words, "devices=2", f"out={out}"])
    assert outcome.code == 0, outcome.err
    return out


def torchrun(*options: str, words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """An agent of `torchrun`; it starts the ranks of one node, and what they say goes to `log`."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--max-restarts", "1", "-m", "ssl_ft", *words]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=CHECKOUT, stdout=file, stderr=file)


def ranks_of(agent: int) -> dict[int, int]:
    """Number of each process that an agent started, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent:
                environment = (folder / "environ").read_bytes().decode().split("\0")
                found |= {int(entry[5:]): int(folder.name) for entry in environment if entry.startswith("RANK=")}
        except (OSError, IndexError):  # no process, or one that has just ended
            continue
    return found


def wait_for_step(run: Path, step: int, agent: "subprocess.Popen[bytes]") -> None:
    while last_step(run) < step:
        assert agent.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_nothing_is_different(words, whole, tmp_path):
    words, log = [*words, f"out={tmp_path / 'a'}"], tmp_path / "log"
    agent = torchrun("--standalone", "--nproc-per-node", "2", words=words, log=log)
    wait_for_step(tmp_path / "a", 20, agent)
    before = ranks_of(agent.pid)
    assert sorted(before) == [0, 1]
    os.kill(before[1], signal.SIGKILL)
    assert agent.wait(timeout=180) == 0, log.read_text()
    assert digest(tmp_path / "a") == digest(whole)


@pytest.mark.slow
def test_a_lost_node_is_done_without(words, whole, tmp_path):
    """Two nodes of one rank each; the second is cut off, and the first goes on alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--rdzv-id", "lost-node", "--local-addr", "127.0.0.1",
    ]  # fmt: skip
    # The meeting place is on one node; the loss of that one would end the run.
    words, logs = [*words, f"out={tmp_path / 'a'}"], [tmp_path / "stays", tmp_path / "leaves"]
    stays, leaves = (
        torchrun(*options, "--rdzv-conf", f"last_call_timeout=8,is_host={host}", words=words, log=log)
        for host, log in zip((1, 0), logs, strict=True)
    )
    wait_for_step(tmp_path / "a", 20, stays)
    for process in (leaves.pid, *ranks_of(leaves.pid).values()):
        os.kill(process, signal.SIGKILL)
    leaves.wait()
    assert stays.wait(timeout=180) == 0, logs[0].read_text()
    ours, theirs = (load_file(run / "encoder/model.safetensors") for run in (tmp_path / "a", whole))
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-8
