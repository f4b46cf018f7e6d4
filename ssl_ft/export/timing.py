"""How fast models answer: in turns, after a warm-up, each round once a model. Memory is in `memory.py`.

What is timed is the model from its prepared input to its outputs; reading and resizing images cost all alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.export.running import Floats32, Pixels, Runner

# Rounds go on for this long, within these limits: enough for a median, short for large models.
_MOST_SECONDS, _FEWEST, _MOST = 20.0, 15, 200
_WARM_UP = 5


@dataclass(frozen=True)
class Speed:
    """Milliseconds of one call with `batch` images.

    Attributes:
        batch: images a call.
        rounds: timed calls.
        median_ms: of the calls.
        low_ms, high_ms: a tenth of the calls was faster, a tenth slower.
    """

    batch: int
    rounds: int
    median_ms: float
    low_ms: float
    high_ms: float

    @property
    def images_per_second(self) -> float:
        """By the median call."""
        return 1000 * self.batch / self.median_ms


def eager_runner(model: nn.Module, contract: InputContract) -> Runner:
    """The plain model in float32 on the CPU, as torch runs it uncompiled."""

    def prepare(pixels: Pixels) -> NDArray[np.generic]:
        prepared: NDArray[np.generic] = contract.normalise(torch.from_numpy(pixels)).numpy()
        return prepared

    def call(images: NDArray[np.generic]) -> Floats32:
        with torch.inference_mode():
            outputs: Floats32 = model(torch.from_numpy(images)).float().numpy()
        return outputs

    return Runner(prepare, call)


def time_in_turns(
    runners: Sequence[Runner], pixels: Sequence[Pixels], *, num_threads: int, most_seconds: float = _MOST_SECONDS
) -> list[Speed]:
    """The speed of each model, all timed in turns so that whatever else the machine does falls on all of them.

    Args:
        runners: the models.
        pixels: for each the uint8 images [B, C, size, size] of a call, of its own size, B alike.
        num_threads: of torch meanwhile; other runtimes were given theirs when they were opened.
        most_seconds: rounds stop after this long, but not before 15 or after 200 of them.
    """
    images = [runner.prepare(block) for runner, block in zip(runners, pixels, strict=True)]
    calls = [(lambda runner=runner, own=own: runner.call(own)) for runner, own in zip(runners, images, strict=True)]
    with _torch_threads(num_threads):
        rounds = seconds_in_turns(calls, most_seconds=most_seconds)
    return [_speed(seconds, batch=len(pixels[0])) for seconds in rounds]


def seconds_in_turns(calls: Sequence[Callable[[], object]], *, most_seconds: float) -> list[list[float]]:
    """Seconds of each call, by rounds in which all are called once, after a warm-up.

    Args:
        calls: what is timed.
        most_seconds: rounds stop after this long, but not before 15 or after 200 of them.
    """
    for _ in range(_WARM_UP):
        for call in calls:
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    pairs = list(zip(seconds, calls, strict=True))
    start = time.perf_counter()
    while len(seconds[0]) < _FEWEST or (len(seconds[0]) < _MOST and time.perf_counter() - start < most_seconds):
        # Another call comes first each time: what one leaves behind, such as threads that still spin, falls on all.
        first = len(seconds[0]) % len(calls)
        for own, call in (*pairs[first:], *pairs[:first]):
            began = time.perf_counter()
            call()
            own.append(time.perf_counter() - began)
    return seconds


def _speed(seconds: Sequence[float], *, batch: int) -> Speed:
    low, median, high = (1000 * float(x) for x in np.quantile(seconds, [0.1, 0.5, 0.9]))
    return Speed(batch, len(seconds), median, low, high)


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
