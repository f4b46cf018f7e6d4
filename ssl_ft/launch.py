"""Start several ranks on this machine without `torchrun`; under `torchrun` the ranks are there already.

What ranks say to each other is in `dist.py`.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ssl_ft.errors import UserError, system_sentence
from ssl_ft.interrupt import WISHES

# A rank that ends in a mistake of the user's sends its sentence and leaves with this code.
_MISTAKE = 2
# One that Ctrl-C broke off, rather than let come to its own end, leaves with this one: it takes the others along.
_BROKEN_OFF = 120
# Seconds in which the first rank to fail ends the others.
_PATIENCE = 3.0


def run_ranks(stage: Callable[[Any], int], settings: Any, *, num_ranks: int) -> int:
    """Run `stage(settings)` on each of `num_ranks` new processes and give the first exit code that is not 0.

    The first rank to fail ends the others. SIGTERM, SIGINT and SIGUSR1 are passed on, so that the ranks can save; a
    rank that does not listen to them yet ends by them, and the others with it: 130, 143 or 138 is given then.

    Raises:
        UserError: a rank raised it, or met a full disk or the like; the sentence is that rank's.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    port = _free_port()
    ranks = [
        context.Process(target=_run_rank, args=(rank, num_ranks, port, stage, settings, send))
        for rank in range(num_ranks)
    ]
    # It would let signals through again when the first rank is started.
    resource_tracker.ensure_running()
    with _PassOn(ranks) as passing:
        # Ranks begin with signals held back, until they can answer them without a traceback from amid their imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WISHES)
        try:
            for process in ranks:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        send.close()
        passing.again()
        codes = _wait(ranks)
    if receive.poll() and _MISTAKE in codes:
        raise UserError(receive.recv())
    return next((_shell_code(code) for code in codes if code), 0)


def _shell_code(code: int) -> int:
    """The code that a shell gives a process that ended so."""
    if code == _BROKEN_OFF:
        return 128 + signal.SIGINT
    return 128 - code if code < 0 else code


def _run_rank(
    rank: int, num_ranks: int, port: int, stage: Callable[[Any], int], settings: Any, send: Connection
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        LOCAL_WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    signal.signal(signal.SIGINT, _break_off)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WISHES)
        code = _code_of(stage, settings, send)
    except KeyboardInterrupt:
        code = _BROKEN_OFF
    sys.stdout.flush()
    sys.stderr.flush()
    # Another rank may be gone; leaving without torch's own farewell avoids waiting for it.
    os._exit(code)


def _break_off(number: int, frame: FrameType | None) -> None:
    """Raise once: a terminal's Ctrl-C comes a second time from whoever started the ranks, amid the tidying up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _code_of(stage: Callable[[Any], int], settings: Any, send: Connection) -> int:
    """The stage's exit code; sentences of mistakes are sent, tracebacks of defects printed."""
    try:
        return stage(settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        sentence = str(error) if isinstance(error, UserError) else system_sentence(error)
        if sentence is not None:
            send.send(sentence)
            return _MISTAKE
        # Where another rank told a mistake, this one merely lost its peer: it is ended before it complains.
        time.sleep(_PATIENCE)
        traceback.print_exc()
        return 1


def _wait(ranks: Sequence[BaseProcess]) -> list[int]:
    """Exit codes in the order in which ranks ended; after a failure the rest is given a moment, then ended."""
    codes: list[int] = []
    waiting = list(ranks)
    while waiting:
        for process in list(waiting):
            process.join(timeout=0.05)
            if process.exitcode is None:
                continue
            waiting.remove(process)
            codes.append(process.exitcode)
            if process.exitcode not in (0, *(128 + number for number in WISHES)):
                for other in waiting:
                    other.join(timeout=1.0)
                    other.kill()
    return codes


class _PassOn:
    """While open, SIGTERM, SIGINT and SIGUSR1 go to the ranks instead of ending this process."""

    def __init__(self, ranks: Sequence[BaseProcess]) -> None:
        self.ranks = ranks
        self.heard: list[int] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "_PassOn":
        for number in WISHES:
            self.before[number] = signal.signal(number, self._pass)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def again(self) -> None:
        """Pass on once more what came while not all ranks had been started."""
        for number in self.heard:
            self._send(number)

    def _pass(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
