"""Ranks of this machine: how they end when they are interrupted, and what becomes of errors."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_ft.errors import UserError
from ssl_ft.launch import run_ranks


def wait(folder: str) -> int:
    """A stage that has not come to listen to signals, as while it reads its data."""
    (Path(folder) / os.environ["RANK"]).touch()
    time.sleep(120)
    return 0


def lose_a_peer(folder: str) -> int:
    """One rank is amid something that its peer's end makes fail, as a collective does."""
    (Path(folder) / os.environ["RANK"]).touch()
    if os.environ["RANK"] == "0":
        time.sleep(120)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(120)
    return 0


def fill_the_disk(folder: str) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{folder}/weights")


def interrupt_when(ready: Callable[[], bool], number: int) -> threading.Thread:
    def press() -> None:
        while not ready():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_signal_before_ranks_listen_ends_them_without_a_word(tmp_path, capfd, number, code):
    began = time.monotonic()
    presser = interrupt_when(lambda: len(list(tmp_path.iterdir())) == 2, number)
    assert run_ranks(wait, str(tmp_path), num_ranks=2) == code
    presser.join()
    assert capfd.readouterr().err == ""
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.dist
def test_ctrl_c_amid_their_imports_does_so_too(tmp_path, capfd):
    began = time.monotonic()
    handler = signal.getsignal(signal.SIGINT)
    presser = interrupt_when(lambda: signal.getsignal(signal.SIGINT) is not handler, signal.SIGINT)
    assert run_ranks(wait, str(tmp_path), num_ranks=2) == 130
    presser.join()
    assert capfd.readouterr().err == ""
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.dist
def test_a_rank_that_ctrl_c_ends_takes_the_others_along(tmp_path, capfd):
    presser = interrupt_when(lambda: len(list(tmp_path.iterdir())) == 2, signal.SIGINT)
    assert run_ranks(lose_a_peer, str(tmp_path), num_ranks=2) == 130
    presser.join()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.dist
def test_a_full_disk_is_a_sentence(tmp_path, capfd):
    with pytest.raises(UserError, match="weights cannot be read or written: No space left"):
        run_ranks(fill_the_disk, str(tmp_path), num_ranks=2)
    assert capfd.readouterr().err == ""
