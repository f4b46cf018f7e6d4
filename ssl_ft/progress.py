"""Progress for a person: a live bar on a terminal, plain lines every few seconds elsewhere. Only rank 0 speaks."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ssl_ft import dist
from ssl_ft.runlog import say

_SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """A bar, or lines, that count to `total`; use it as a context.

    Args:
        label: what is being done.
        total: units of work.
        done: units done before.
    """

    def __init__(self, label: str, *, total: int, done: int = 0) -> None:
        self.label, self.total, self.first, self.done = label, total, done, done
        self.started, self.last_line = time.monotonic(), 0.0
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if dist.is_main() and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            more = (TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
            self.bar = Progress(*columns, *more, console=Console(stderr=True))
            self.task = self.bar.add_task(label, total=total, completed=done, text="")

    def __enter__(self) -> "ProgressLine":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        """Say that one more unit is done."""
        self.done += 1
        self.update(self.done)

    def update(self, done: int, text: str = "") -> None:
        """Say that `done` units are done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.last_line < _SECONDS_BETWEEN_LINES and done < self.total:
            return
        self.last_line = now
        pace = (now - self.started) / max(1, done - self.first)
        left = pace * (self.total - done)
        say(f"{self.label} {done}/{self.total}{f' {text}' if text else ''}, {left:.0f} s left")
