"""What a benchmark reports, and how two pieces of work are timed fairly: in turns, in one run, as ratios.

What is timed is in the files of the subjects; printing and writing rows is in `table.py`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Work = Callable[[], object]
Stopwatch = Callable[[Work], float]

_NUM_RESAMPLES = 2000


class CannotMeasure(Exception):  # noqa: N818 - no mistake of anyone's; the row says why it is empty
    """Something a row needs is not on this machine; the reason is told in the row's place."""


@dataclass(frozen=True)
class Bar:
    """What a row should reach.

    Attributes:
        figure: which of the row's figures it is about.
        relation: whether larger or smaller is better.
        value: in the unit of that figure.
    """

    figure: Literal["ratio", "ours"]
    relation: Literal["at least", "at most"]
    value: float


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        name: what was measured.
        ours: median over the rounds, in `unit`; None where it was not measured.
        peer: the same of what it is compared with; None where there is nothing to compare with.
        unit: of both.
        ratio: median of the paired ratios; which way round, the name says.
        low: lower end of the ratio's 95 % bootstrap interval over rounds; None for a single pair.
        high: upper end.
        note: what a reader must know to judge the figure.
        bar: what it should reach.
    """

    name: str
    ours: float | None
    peer: float | None
    unit: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    bar: Bar | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached; None where there is no bar or no figure."""
        value = None if self.bar is None else self.ratio if self.bar.figure == "ratio" else self.ours
        if self.bar is None or value is None:
            return None
        return value >= self.bar.value if self.bar.relation == "at least" else value <= self.bar.value


def at_least(value: float, *, of: Literal["ratio", "ours"] = "ratio") -> Bar:
    """A bar that larger figures reach."""
    return Bar(of, "at least", value)


def at_most(value: float, *, of: Literal["ratio", "ours"] = "ratio") -> Bar:
    """A bar that smaller figures reach."""
    return Bar(of, "at most", value)


def unmeasured(name: str, reason: str) -> Row:
    """The place of rows that could not be measured."""
    return Row(name, None, None, "", note=f"not measured: {reason}")


def wall_seconds(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `work` takes by the clock on the wall."""
    start = clock()
    work()
    return clock() - start


def core_seconds(work: Work) -> float:
    """Seconds of processor time that this process spends on `work`, all its threads together."""
    return wall_seconds(work, time.process_time)


def stopwatch_for(device: torch.device) -> Stopwatch:
    """Events on a GPU, which runs behind the program; the wall clock elsewhere."""
    return _event_seconds if device.type == "cuda" else wall_seconds


def _event_seconds(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def time_in_turns(
    works: Sequence[Work], *, rounds: int, warm_up: int = 1, stopwatch: Stopwatch = wall_seconds
) -> list[tuple[float, ...]]:
    """Time several pieces of work in turns, A B A B …, so that whatever else the machine does falls on all of them.

    Args:
        works: called without arguments, each as often as the others.
        rounds: timed calls of each.
        warm_up: calls of each before, not timed.
        stopwatch: seconds of one call.

    Returns:
        For each work its seconds, one a round; those of one round belong together.
    """
    for _ in range(warm_up):
        for work in works:
            work()
    turns = [[stopwatch(work) for work in works] for _ in range(rounds)]
    return list(zip(*turns, strict=True))


def ratio_with_spread(over: Sequence[float], under: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Median of over/under pair by pair, and its 95 % percentile bootstrap interval over pairs.

    The interval's ends are None for a single pair, which says nothing about spread.
    """
    ratios = np.asarray(over, np.float64) / np.asarray(under, np.float64)
    if len(ratios) == 1:
        return float(ratios[0]), None, None
    resampled = np.random.default_rng(0).choice(ratios, (_NUM_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def compare(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    unit: str,
    is_speed_up: bool = False,
    bar: Bar | None = None,
    note: str = "",
) -> Row:
    """A row from paired figures.

    Args:
        name: what was measured.
        ours: one figure a round, in `unit`.
        peer: the peer's of the same rounds.
        unit: of both.
        is_speed_up: the figures are times and the ratio is peer/ours, how many times faster; else it is ours/peer.
        bar: what the row should reach.
        note: what a reader must know.
    """
    over, under = (peer, ours) if is_speed_up else (ours, peer)
    ratio, low, high = ratio_with_spread(over, under)
    return Row(name, float(np.median(ours)), float(np.median(peer)), unit, ratio, low, high, note, bar)
