"""How much training a study took until it had found settings of a score, to hold one way of searching against another.

`python -m ssl_ft.tuning.effort A B` says it of two run folders of tune.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_ft.errors import UserError
from ssl_ft.tuning.records import StudyRecord, read_records


@dataclass(frozen=True)
class Effort:
    """One search beside another that sets the mark.

    Attributes:
        score: the best value of the study that sets the mark.
        mark_steps: steps of all its trials.
        mark_until: its steps until that value was there.
        until: steps of the other study until it had a trial as good; None where it never had.
    """

    score: float
    mark_steps: int
    mark_until: int
    until: int | None

    @property
    def share(self) -> float:
        """Steps of the other study as a share of all steps of the one that sets the mark; infinite where it failed."""
        return float("inf") if self.until is None else self.until / self.mark_steps


def best_value(study: StudyRecord) -> float:
    """The highest value of a completed trial.

    Raises:
        UserError: no trial was completed.
    """
    values = [trial.value for trial in study.trials if trial.state == "complete" and trial.value is not None]
    if not values:
        raise UserError("the study completed no trial, so it has no best score")
    return max(values)


def steps_until(study: StudyRecord, score: float) -> int | None:
    """Training steps of all trials that had ended when one was completed with this value or a higher one.

    Pruned and failed trials count with the steps they took. A trial that was stopped never reaches a score, whatever
    it had reported: its settings do not reproduce it. None where no trial reached it.
    """
    steps = 0
    for trial in study.in_order():
        steps += trial.steps
        if trial.state == "complete" and trial.value is not None and trial.value >= score:
            return steps
    return None


def effort(mark: StudyRecord, other: StudyRecord) -> Effort:
    """How many steps the other study took to the best score of the one that sets the mark.

    Raises:
        UserError: they are not to be compared, or no trial was completed.
    """
    alike = ("stage", "score", "space", "most_steps", "subject")
    odd = [name for name in alike if getattr(mark, name) != getattr(other, name)]
    if odd:
        words = {"subject": "data, encoder or other settings", "most_steps": "steps of a trial"}
        raise UserError(
            "the two studies cannot be held against one another, as they differ in "
            f"{words.get(odd[0], odd[0])}; tune both alike"
        )
    score = best_value(mark)
    until = steps_until(mark, score)
    assert until is not None, "a study reaches its own best"
    return Effort(score, mark.num_steps, until, steps_until(other, score))


def median_share(efforts: Sequence[Effort]) -> float:
    """The median over seeds of the share of steps."""
    return statistics.median(each.share for each in efforts)


def main(words: Sequence[str]) -> int:
    """Print the efforts of pairs of run folders: mark, other, mark, other, …"""
    if not words or len(words) % 2:
        print("usage: python -m ssl_ft.tuning.effort MARK OTHER [MARK OTHER ...]", file=sys.stderr)
        return 2
    pairs = list(zip(words[::2], words[1::2], strict=True))
    try:
        efforts = [effort(read_records(Path(mark)), read_records(Path(other))) for mark, other in pairs]
    except UserError as error:
        print(f"effort: {error}", file=sys.stderr)
        return 2
    except ValueError:
        print("effort: a tuning.json is damaged; run `ssl-ft tune` again with the same out=", file=sys.stderr)
        return 2
    for (mark, other), each in zip(pairs, efforts, strict=True):
        reached = "never" if each.until is None else f"after {each.until} steps, {each.share:.2f} of {each.mark_steps}"
        print(f"{mark}: {each.score:.4f} after {each.mark_until} of {each.mark_steps} steps; {other}: {reached}")
    print(f"median share over {len(efforts)}: {median_share(efforts):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
