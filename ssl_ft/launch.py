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
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ssl_ft.errors import UserError
from ssl_ft.interrupt import WISHES

# A rank that ends in a mistake of the user's sends its sentence and leaves with this code.
_MISTAKE = 2
# Seconds in which the first rank to fail ends the others.
_PATIENCE = 3.0


def run_ranks(stage: Callable[[Any], int], settings: Any, *, num_ranks: int) -> int:
    """Run `stage(settings)` on each of `num_ranks` new processes and give the first exit code that is not 0.

    The first rank to fail ends the others. SIGTERM, SIGINT and SIGUSR1 are passed on, so that the ranks can save.

    Raises:
        UserError: a rank raised it; the sentence is that rank's.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    port = _free_port()
    ranks = [
        context.Process(target=_run_rank, args=(rank, num_ranks, port, stage, settings, send))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    send.close()
    with _PassOn(ranks):
        codes = _wait(ranks)
    if receive.poll() and _MISTAKE in codes:
        raise UserError(receive.recv())
    return next((code for code in codes if code), 0)


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
    try:
        code = stage(settings)
    except UserError as error:
        send.send(str(error))
        code = _MISTAKE
    except BaseException:
        # Where another rank told a mistake, this one merely lost its peer: it is ended before it complains.
        time.sleep(_PATIENCE)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Another rank may be gone; leaving without torch's own farewell avoids waiting for it.
    os._exit(code)


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
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in WISHES:
            self.before[number] = signal.signal(number, self._pass)

    def __exit__(self, *unused: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _pass(self, number: int, frame: FrameType | None) -> None:
        for process in self.ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
