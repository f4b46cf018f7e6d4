"""The memory a piece of work takes beyond what its process held before, measured in a process of its own.

Linux only: peaks are read from `/proc`. The counter of `getrusage` would not do, as a new process inherits the peak
of the one that started it.
"""

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from ssl_ft.bench.timing import CannotMeasure, Work, wall_seconds

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident size to the present one


@dataclass(frozen=True)
class Cost:
    """What one call took.

    Attributes:
        extra_mb: peak resident memory less that before the call, in 10^6 bytes.
        seconds: by the wall clock.
    """

    extra_mb: float
    seconds: float


def cost_in_own_process(prepare: Callable[[int], Work], size: int, *, warm_up_size: int, num_threads: int) -> Cost:
    """Memory and time of `prepare(size)()` in a fresh process; what `prepare` holds is not counted.

    Args:
        prepare: builds the work for a size; a function of a module, as the new process imports it.
        size: how large the measured work is.
        warm_up_size: a smaller one that is done before, so that libraries have their buffers.
        num_threads: of torch.

    Raises:
        CannotMeasure: no `/proc`, or the system ended the process for lack of memory.
    """
    if not (_CLEAR.exists() and _STATUS.exists() and "VmHWM" in _STATUS.read_text()):
        raise CannotMeasure("this system does not tell the peak memory of a process in /proc/self/status")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_cost, prepare, size, warm_up_size, num_threads).result()
        except BrokenProcessPool as error:
            raise CannotMeasure("the system ended the process that was measured; most likely memory ran out") from error


def resident_mb() -> float:
    """Memory this process holds now, in 10^6 bytes.

    Raises:
        CannotMeasure: no `/proc`.
    """
    if not _STATUS.exists():
        raise CannotMeasure("this system does not tell the memory of a process in /proc/self/status")
    return _kilobytes("VmRSS") * 1024 / 1e6


def _cost(prepare: Callable[[int], Work], size: int, warm_up_size: int, num_threads: int) -> Cost:
    torch.set_num_threads(num_threads)
    prepare(warm_up_size)()
    work = prepare(size)
    _CLEAR.write_text(_RESET_PEAK)
    before = _kilobytes("VmRSS")
    seconds = wall_seconds(work)
    return Cost(max(0, _kilobytes("VmHWM") - before) * 1024 / 1e6, seconds)


def _kilobytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {key}"
    return int(match[1])
