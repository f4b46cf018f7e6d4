"""Rungs at which trials are judged: how many steps stand below each, and how many brackets begin at which.

Li et al. 2018, "Hyperband", in the asynchronous form of Li et al. 2020, "A system for massively parallel
hyperparameter tuning" (ASHA): a trial goes on from a rung where it is among the best 1/reduction seen there so far.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ladder:
    """The rungs of a study.

    Attributes:
        first: steps below the lowest rung.
        reduction: a rung has this many times the steps of the one below it.
        most: steps of a whole trial; no rung stands there, and none but the first in the last third of it, where little
            is left to save and each would be a bracket more.
    """

    first: int
    reduction: int
    most: int

    def rungs(self) -> tuple[int, ...]:
        """Steps below each rung, ascending."""
        found: list[int] = []
        steps = self.first
        while steps < self.most and (not found or 3 * steps <= 2 * self.most):
            found.append(steps)
            steps *= self.reduction
        return tuple(found)

    @property
    def top(self) -> int:
        """Steps of the rung that would come next; from there on no trial is judged any more."""
        return int(self.first * self.reduction ** len(self.rungs()))


def default_first(most: int, *, reduction: int, interval: int, warmup: int) -> int:
    """Steps below the lowest rung of about four brackets; not before the first evaluation, nor in the warm-up.

    A trial that is warming up is judged by how fast it began, and the best of small rates begin slowly: the rung waits
    for as many steps again, but stands at the end of the first part of the trial at the latest. It stands at the
    nearest evaluation, and so do those above it: a trial judged between two would train on to the next.

    Args:
        most: steps of a whole trial.
        reduction: of the ladder; so many parts has a trial.
        interval: steps between evaluations.
        warmup: steps with rising learning rate.
    """
    wanted = max(-(-most // reduction**3), min(2 * warmup, most // reduction))
    return max(round(wanted / interval), 1) * interval
