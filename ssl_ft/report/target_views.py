"""What the page shows of multi-label and regression runs: a table a target, and predicted over true values.

Also the sentence on top of the page. Nothing is read here; see `target_files.py`.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ssl_ft.report import formats
from ssl_ft.report.runs import Metric, Run
from ssl_ft.report.sections import Table
from ssl_ft.report.svg import SERIES, render
from ssl_ft.report.target_files import TargetPredictions, TargetTable
from ssl_ft.report.words import in_sentence

# Figures side by side that a reader still takes in; the table below them has every target.
_MAX_SCATTERS = 6
_HEADS = {
    "label": "Label",
    "target": "Target",
    "n": "Images",
    "positives": "Positives",
    "average_precision": "Average precision",
    "auroc": "AUROC",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "spearman": "Spearman",
}
# The number to quote of each task, and its words.
_HEADLINES = {
    "mean_average_precision": "a mean average precision over its labels of",
    "mean_r2": "an R\N{SUPERSCRIPT TWO} of",
}


@dataclass(frozen=True)
class Scatter:
    """Predicted over true values of one target."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class TargetView:
    """One run's scores by target."""

    table: Table
    scatters: tuple[Scatter, ...]
    left_out: str


def target_view(run: Run, *, prefix: str) -> TargetView | None:
    """Table and figures; None where the run has none."""
    table, predictions = run.extras.target_table, run.extras.target_predictions
    if table is None:
        return None
    scatters: list[Scatter] = []
    left_out = ""
    if predictions is not None and predictions.task == "regression":
        is_known = ~np.isnan(predictions.truth)
        shown = [column for column in range(len(predictions.names)) if is_known[:, column].any()][:_MAX_SCATTERS]
        scatters = [_scatter(predictions, column, prefix=f"{prefix}-{column}") for column in shown]
        if len(predictions.names) > _MAX_SCATTERS:
            left_out = f"Shown are the first {_MAX_SCATTERS} of {len(predictions.names)} targets."
    return TargetView(_table(table), tuple(scatters), left_out)


def target_finding(run: Run) -> str:
    """The answer of a multi-label or regression run in one sentence; empty for others."""
    overall = {metric.name: metric for metric in run.result.metrics if metric.target is None and metric.split == "test"}
    name = next((name for name in _HEADLINES if name in overall), None)
    if name is None:
        return ""
    metric = overall[name]
    model = in_sentence(metric.model or run.stage)
    return f"With {_budget(metric)} {model} reaches {_HEADLINES[name]} {_with_interval(metric)}."


def _with_interval(metric: Metric) -> str:
    bounds = formats.interval(metric.name, metric.low, metric.high)
    value = formats.measured(metric.name, metric.value)
    return f"{value} (95{formats.NBSP}% interval {bounds})" if bounds else value


def _budget(metric: Metric) -> str:
    """A budget of these tasks counts images in all."""
    budget = metric.labels_per_class
    if budget is None or formats.is_share_budget(budget):
        return formats.budget_words(budget)
    return formats.counted(int(budget), "labelled image")


def _table(table: TargetTable) -> Table:
    rows = tuple(tuple(_cell(head, text) for head, text in zip(table.head, row, strict=True)) for row in table.rows)
    return Table(tuple(_HEADS.get(head, head) for head in table.head), rows)


def _cell(head: str, text: str) -> str:
    if head in ("label", "target"):
        return text
    try:
        value = float(text)
    except ValueError:
        return formats.DASH  # undefined, such as the recall of a label without positives
    return formats.count(int(value)) if head in ("n", "positives") else formats.measured(head, value)


def _scatter(predictions: TargetPredictions, column: int, *, prefix: str) -> Scatter:
    known = ~np.isnan(predictions.truth[:, column])
    truth, predicted = predictions.truth[known, column], predictions.predicted[known, column]
    name = formats.printable(predictions.names[column])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
        axes.plot(ends, ends, color="#8a8f98", linewidth=1.2, linestyle=(0, (5, 2)))
        size = float(np.clip(6000 / len(truth), 4, 22))
        axes.scatter(truth, predicted, s=size, color=SERIES[0], alpha=0.6, linewidths=0, rasterized=True)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")

    what = f"{name}: predicted over true values of {formats.counted(len(truth), 'test image')}; on the line they agree."
    return Scatter(
        predictions.names[column],
        Markup(render(draw, size=(330, 280), font_size=11.5, prefix=prefix, description=what)),
    )
