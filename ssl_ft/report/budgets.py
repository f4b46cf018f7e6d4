"""Accuracy over label budgets: which runs are judged on the same images, and their curves side by side.

No sentences (`words.py`) and no drawing (`figures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from ssl_ft.report.formats import Budget, budget_order
from ssl_ft.report.runs import Metric, Run

MODEL_LABELS = {
    "encoder": "Pretrained encoder",
    "untrained": "Same encoder, untrained",
    "pixels": "Raw pixels",
    "full": "Fine-tuned",
    "scratch": "Trained from scratch",
    "probe": "Probe as classifier",
    "partial": "Last layers fine-tuned",
    "layer_decay": "Fine-tuned, layer-wise rates",
    "gradual": "Unfrozen top-down",
    "probe_then_finetune": "Fine-tuned from a solved head",
    "l2sp": "Fine-tuned near its source",
    "feature_distance": "Fine-tuned, features held",
}
# The first five have a style of their own, the others take what is free.
_STYLE_OF_MODEL = {model: index for index, model in enumerate([*MODEL_LABELS][:5])}
NUM_STYLES = 8


@dataclass(frozen=True)
class Series:
    """One model's scores by budget; `style` in [0, NUM_STYLES) picks colour, dash and marker everywhere."""

    label: str
    style: int
    by_budget: dict[Budget, Metric]


@dataclass(frozen=True)
class Comparison:
    """Runs judged on the same images, with their series and all budgets in order."""

    name: str
    split: str
    runs: tuple[Run, ...]
    series: tuple[Series, ...]
    budgets: tuple[Budget, ...]


def compare_runs(runs: Sequence[Run]) -> tuple[Comparison, ...]:
    """Groups the runs that have accuracies by the images they were judged on, in order of appearance."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        split = judged_split(run)
        if split is not None:
            groups.setdefault((_identity(run, split), split), []).append(run)
    return tuple(_comparison(group, split) for (_, split), group in groups.items())


def judged_split(run: Run) -> str | None:
    """'test' where the run has an accuracy on test images, else 'val', else None."""
    splits = {metric.split for metric in run.result.metrics if metric.name == "accuracy"}
    return next((split for split in ("test", "val") if split in splits), None)


def accuracies(run: Run) -> dict[str, dict[Budget, Metric]]:
    """Accuracy by model and budget on the judged split; the first row counts where one is repeated."""
    split = judged_split(run)
    found: dict[str, dict[Budget, Metric]] = {}
    for metric in run.result.metrics:
        if metric.name == "accuracy" and metric.split == split:
            found.setdefault(metric.model or run.stage, {}).setdefault(metric.labels_per_class, metric)
    return found


def _identity(run: Run, split: str) -> str:
    uses = [use for use in run.data if use.role == split]
    return (uses[0].fingerprint or uses[0].location) if uses else ""


def _comparison(runs: list[Run], split: str) -> Comparison:
    locations = [use.location for run in runs for use in run.data if use.role == split and use.location]
    series = _series(runs)
    budgets = sorted({budget for one in series for budget in one.by_budget}, key=budget_order)
    name = PurePath(locations[0]).name if locations else ""
    return Comparison(name or "the data", split, tuple(runs), tuple(series), tuple(budgets))


def _series(runs: list[Run]) -> list[Series]:
    found: list[tuple[str, str, dict[Budget, Metric]]] = []
    for run in runs:
        for model, by_budget in accuracies(run).items():
            # Baselines such as raw pixels come out the same beside every encoder: shown once.
            if not any(other == model and _same(by_budget, scores) for other, _, scores in found):
                found.append((model, run.name, by_budget))
    series: list[Series] = []
    models = [model for model, _, _ in found]
    for model, run_name, by_budget in found:
        label = MODEL_LABELS.get(model, model)
        if models.count(model) > 1:
            label = f"{label} ({run_name})"
        series.append(Series(label, -1, by_budget))
    return _with_styles(series, models)


def _same(one: dict[Budget, Metric], other: dict[Budget, Metric]) -> bool:
    return {budget: metric.value for budget, metric in one.items()} == {
        budget: metric.value for budget, metric in other.items()
    }


def _with_styles(series: list[Series], models: list[str]) -> list[Series]:
    """The first series of a known model keeps that model's style in every figure; others take free ones."""
    taken: list[int] = []
    for index, model in enumerate(models):
        usual = _STYLE_OF_MODEL.get(model)
        taken.append(usual if usual is not None and model not in models[:index] else -1)
    free = [style for style in (*range(5, NUM_STYLES), *range(5)) if style not in taken]
    styled: list[Series] = []
    for one, style in zip(series, taken, strict=True):
        if style < 0:
            style = free.pop(0) if free else len(styled) % NUM_STYLES
        styled.append(replace(one, style=style))
    return styled
