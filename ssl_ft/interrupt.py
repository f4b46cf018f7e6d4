"""Ctrl-C, SIGTERM and SIGUSR1 as a wish to stop that the loop can ask about, instead of an exception in mid-step.

SIGTERM is how `torchrun`, Kubernetes and Slurm warn of an end, SIGUSR1 what our Slurm jobs are sent before their time
is up (`build/cluster.py`). Who starts ranks and passes signals on is `launch.py`.
"""

import signal
import time
from types import FrameType
from typing import Any

from ssl_ft.runlog import say

WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A terminal's Ctrl-C reaches a rank twice: from the terminal, and passed on by whoever started the ranks.
_SAME_PRESS_S = 1.0


class StopWish:
    """Remembers the first SIGINT, SIGTERM or SIGUSR1 while open; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._heard_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopWish":
        for number in WISHES:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal_number:
            self.signal_number, self._heard_at = number, now
            say("stopping after this step (Ctrl-C once more to stop at once)")
        elif number == signal.SIGINT and now - self._heard_at > _SAME_PRESS_S:
            # Only a person means "at once": schedulers repeat their signals while a checkpoint is being written.
            raise KeyboardInterrupt

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """The shell's code for a process ended by that signal; SIGTERM's where only another rank heard one."""
        return 128 + (self.signal_number or signal.SIGTERM)
