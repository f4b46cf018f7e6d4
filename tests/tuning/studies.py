"""A study of a formula instead of trainings, so that sharing, pruning and resuming can be tested by the dozen."""

import sys
import time
from pathlib import Path

from ssl_ft.tuning.ladder import Ladder
from ssl_ft.tuning.space import Dimension
from ssl_ft.tuning.study import Outcome, RunningTrial, SharedStudy, StudyPlan, work_on

RATE = Dimension("optim.rate", "float", 1e-4, 1.0, is_log=True)
DEPTH = Dimension("depth", "int", 1, 4)
NAME = Dimension("name", "categorical", choices=("a", "b", None))
SPACE = (RATE, DEPTH, NAME)
GRID = (Dimension("share", "float", 0.1, 0.3, step=0.1), Dimension("depth", "int", 1, 2), NAME)
STEPS = 27
# Each report is a line of the journal, synced to disk.
EVALUATED = (1, 3, 9, 27)


def plan_of(
    sampler: str = "random", *, num_trials: int = 12, pruner: str = "none", name: str = "toy", seed: int = 0
) -> StudyPlan:
    """A study of the formula."""
    ladder = None if pruner == "none" else Ladder(1, 3, STEPS)
    space = GRID if sampler == "grid" else SPACE
    return StudyPlan(name, space, sampler, pruner, num_trials, seed, ladder)


def score(values: dict[str, object], step: int) -> float:
    """Higher near the middle of every range; it rises with the steps, and never crosses."""
    rate = float(values.get("optim.rate", 0.01))  # type: ignore[arg-type]
    apart = abs(rate - 0.01) + 0.1 * abs(int(values["depth"]) - 2) + (0.0 if values["name"] == "b" else 0.05)  # type: ignore[call-overload]
    return (1 - apart) * step / STEPS


def train(trial: RunningTrial, *, pause: float = 0.0) -> Outcome:
    """The formula on its way to 27 steps."""
    for step in EVALUATED:
        time.sleep(pause)
        trial.report(step, score(trial.values, step), is_last=step == STEPS)
    return Outcome(score(trial.values, STEPS), STEPS)


def run(folder: Path, plan: StudyPlan, *, pause: float = 0.0) -> SharedStudy:
    """Work through a study in this process."""
    folder.mkdir(exist_ok=True, parents=True)
    study = SharedStudy(folder, plan)
    assert work_on(
        study, train=lambda trial: train(trial, pause=pause), should_stop=lambda: False, on_trial=lambda record: None
    )
    return study


if __name__ == "__main__":
    run(Path(sys.argv[1]), plan_of(sys.argv[2], pruner=sys.argv[3], num_trials=int(sys.argv[4])), pause=0.03)
