"""The report's section on a run of tune: sentences, figures and a table from `tuning.json`.

Figures are drawn in `tuning_figures.py`; nothing is computed anew here but counts.
"""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ssl_ft.report import formats
from ssl_ft.report.tuning_figures import (
    history_figure,
    importance_figure,
    last_value,
    parallel_figure,
    passed,
    rung_figure,
)
from ssl_ft.tuning.records import StudyRecord, TrialRecord, read_records
from ssl_ft.tuning.space import plain_words

_MOST_ROWS = 10
_SAMPLERS = {
    "random": "random search",
    "grid": "a grid",
    "tpe": "a model of good and bad trials (TPE)",
    "gp": "a Gaussian process",
}
_PRUNERS = {"hyperband": "Hyperband", "asha": "successive halving"}


@dataclass(frozen=True)
class TuningView:
    """What the template prints; rows are cells of text, a figure that has nothing to show is None."""

    verdict: str
    accounts: tuple[str, ...]
    history: Markup
    rungs: Markup | None
    importances: Markup | None
    parallel: Markup
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def read_tuning(path: Path, _problems: list[str]) -> StudyRecord:
    """The file's content.

    Raises:
        ValueError: it is not what the stage writes.
    """
    return read_records(path.parent)


def tuning_sentence(study: StudyRecord) -> str:
    """The best settings in a sentence."""
    score = study.score.replace("_", " ")
    if study.best is None:
        return f"No trial of {len(study.trials)} was trained to its end."
    best = study.trials[study.best]
    reached = formats.measured(study.score, best.value or 0.0)
    chosen = ", ".join(f"{name} {formats.printable(plain_words(value))}" for name, value in best.settings.items())
    return (
        f"The best of {len(study.trials)} settings tried reaches {reached} {score}: {chosen}. "
        "Test images were not looked at, and a score that was chosen by is flattered."
    )


def tuning_view(study: StudyRecord, *, prefix: str) -> TuningView:
    """Everything the section prints; `prefix` goes before the figures' ids."""
    has_reports = any(trial.reports for trial in study.trials)
    return TuningView(
        tuning_sentence(study),
        _accounts(study),
        Markup(history_figure(study, prefix=f"{prefix}-history")),
        Markup(rung_figure(study, prefix=f"{prefix}-rungs")) if has_reports else None,
        Markup(importance_figure(study, prefix=f"{prefix}-importances")) if study.importances else None,
        Markup(parallel_figure(study, prefix=f"{prefix}-parallel")),
        ("Trial", study.score.replace("_", " "), "Steps", *(own.name for own in study.space)),
        tuple(_row(study, trial) for trial in _best_first(study)[:_MOST_ROWS]),
    )


def _accounts(study: StudyRecord) -> tuple[str, ...]:
    lines = [
        f"Settings of {study.stage} were chosen by {_SAMPLERS.get(study.sampler, study.sampler)}; "
        f"{study.count('complete')} trials were trained to their end, {study.count('pruned')} stopped early, "
        f"{study.count('failed')} failed. All took {formats.counted(study.num_steps, 'training step')}."
    ]
    if study.most_steps is not None and study.trials:
        whole = study.most_steps * len(study.trials)
        lines.append(f"Trained to their end, as many trials could have taken {formats.counted(whole, 'step')}.")
    if study.rungs:
        went_on = ", ".join(f"{number} after {rung} steps" for rung, number in passed(study))
        lines.append(f"Trials that {_PRUNERS.get(study.pruner, study.pruner)} let go on: {went_on}.")
    if not study.importances:
        lines.append("Too few trials were completed to tell which settings matter.")
    return tuple(lines)


def _best_first(study: StudyRecord) -> list[TrialRecord]:
    done = [trial for trial in study.trials if trial.state == "complete"]
    return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))


def _row(study: StudyRecord, trial: TrialRecord) -> tuple[str, ...]:
    value = last_value(trial)
    return (
        str(trial.number),
        "" if value is None else formats.measured(study.score, value),
        formats.count(trial.steps),
        *(formats.printable(plain_words(trial.settings.get(own.name))) for own in study.space),
    )
