"""The wish to stop: which signals are one, which code it ends with, and what a second one does."""

import os
import signal

import pytest

from ssl_ft import interrupt
from ssl_ft.interrupt import StopWish


def hear(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGTERM, 143)], ids=str
)
def test_the_first_signal_is_remembered_and_the_handlers_come_back(number, code):
    before = [signal.getsignal(each) for each in interrupt.WISHES]
    with StopWish() as wish:
        assert not wish
        hear(number)
        assert wish
        hear(signal.SIGTERM)
        assert wish.exit_code == code
    assert [signal.getsignal(each) for each in interrupt.WISHES] == before


def test_only_a_second_press_ends_at_once(monkeypatch):
    now = 100.0
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now)
    with StopWish() as wish:
        hear(signal.SIGINT)
        now = 100.2  # the same press, passed on by whoever started this process
        hear(signal.SIGINT)
        now = 200.0  # a scheduler repeats itself while a checkpoint is being written
        hear(signal.SIGTERM)
        hear(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            hear(signal.SIGINT)
        assert wish.exit_code == 130


def test_a_rank_that_heard_nothing_ends_as_by_sigterm():
    assert StopWish().exit_code == 143
