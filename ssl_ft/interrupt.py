"""Ctrl-C and SIGTERM as a wish to stop that the loop can ask about, instead of an exception in mid-step."""

import signal
from types import FrameType
from typing import Any

from ssl_ft.runlog import say


class StopWish:
    """Remembers the first SIGINT or SIGTERM while open; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopWish":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = number
        say("stopping after this step, with a checkpoint (once more to stop at once)")

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """The shell's code for a process ended by that signal."""
        return 128 + self.signal_number if self.signal_number else 0
