"""What a study came to, as it is kept in `tuning.json` for the report and for comparisons. Needs no optuna to read."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ssl_ft.errors import UserError
from ssl_ft.runlog import write_text

RECORDS = "tuning.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialRecord(_Record):
    """One trial.

    Attributes:
        number: from 0 in the order in which trials began.
        place: from 0 in the order in which they ended; None while one runs.
        state: how it ended. What failed met a mistake, such as a loss that is not finite.
        value: its score; None of trials that were not trained to their end.
        steps: training steps it took.
        seconds: what it took.
        settings: the value of each setting searched.
        reports: (steps, score so far) of its evaluations.
        reason: why it failed.
        device: "cpu" or "cuda", where it was trained.
    """

    number: int
    place: int | None
    state: Literal["complete", "pruned", "failed", "running"]
    value: float | None
    steps: int
    seconds: float
    settings: dict[str, Any]
    reports: tuple[tuple[int, float], ...]
    reason: str = ""
    device: str = ""


class RangeRecord(_Record):
    """One setting that was searched: its range in words, and for axes its ends or its choices in order."""

    name: str
    words: str
    is_log: bool
    ends: tuple[float, float] | None
    choices: tuple[Any, ...]


class StudyRecord(_Record):
    """A whole study.

    Attributes:
        stage: what was tuned.
        score: the name of what was to be high.
        sampler: how settings were chosen.
        pruner: what stopped trials early.
        rungs: steps at which trials were judged.
        most_steps: steps of a whole trial; None where they differ.
        space: what was searched.
        trials: by number.
        best: number of the trial with the highest value, the earliest of equals; None where none was completed.
        importances: share of the variance of completed trials' values that a setting explains (fANOVA); empty where
            too few were completed.
        subject: what was tuned on what: studies of another one cannot be compared.
    """

    stage: str
    score: str
    sampler: str
    pruner: str
    rungs: tuple[int, ...]
    most_steps: int | None
    space: tuple[RangeRecord, ...]
    trials: tuple[TrialRecord, ...]
    best: int | None
    importances: dict[str, float]
    subject: str = ""

    def count(self, state: str) -> int:
        """Trials that ended so."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def num_steps(self) -> int:
        """Training steps of all trials."""
        return sum(trial.steps for trial in self.trials)

    def in_order(self) -> list[TrialRecord]:
        """Trials that ended, in the order in which they did."""
        ended = [(trial.place, trial) for trial in self.trials if trial.place is not None]
        return [trial for _, trial in sorted(ended, key=lambda pair: pair[0])]


def write_records(folder: Path, record: StudyRecord) -> None:
    """Keep the record in a run folder."""
    write_text(folder / RECORDS, record.model_dump_json(indent=1) + "\n")


def read_records(folder: Path) -> StudyRecord:
    """The record of a run folder.

    Raises:
        UserError: it has none.
        ValueError: it is damaged (pydantic's own is one).
    """
    path = folder / RECORDS
    if not path.is_file():
        raise UserError(f"{folder} holds no finished study: it has no {RECORDS}")
    return StudyRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
