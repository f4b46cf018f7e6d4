"""What a comparison leaves in its run folder: tables for people and machines. The stage calls this; the page reads it.

`costs.csv` holds all that depends on the machine and the day; every other file is the same however the work was
shared out.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ssl_ft.errors import UserError
from ssl_ft.evaluate.efficiency import Bound
from ssl_ft.evaluate.summary import Cost, Row, Summary
from ssl_ft.report.formats import BOUND_MARKS
from ssl_ft.runlog import write_text

SUMMARY, COSTS = "comparison.json", "costs.json"
_SUMMARY = TypeAdapter(Summary)
_COSTS = TypeAdapter(tuple[Cost, ...])


def write_summary(run: Path, summary: Summary) -> None:
    """Write table.csv, comparisons.csv, labels_saved.csv, break_even.csv, costs.csv, and as JSON for the page."""
    write_text(run / SUMMARY, json.dumps(asdict(replace(summary, costs=())), indent=1) + "\n")
    write_text(run / COSTS, json.dumps([asdict(cost) for cost in summary.costs], indent=1) + "\n")
    _write(run / "table.csv", _TABLE, map(_table_row, summary.rows))
    _write(
        run / "comparisons.csv",
        ("model", "other", "labels_per_class", "accuracy_difference", "low", "high", "p", "p_holm"),
        ((d.model, d.other, d.budget, *_numbers(d.value, d.low, d.high, d.p, d.p_holm)) for d in summary.differences),
    )
    _write(
        run / "labels_saved.csv",
        ("model", "labels_per_class", "labels", "baseline", "needs_labels", "low", "high"),
        (
            (r.model, r.budget, r.num_labels, r.baseline, *map(bound_text, (r.needed, r.low, r.high)))
            for r in summary.reaches
        ),
    )
    _write(
        run / "break_even.csv",
        ("model", "baseline", "as_good_from_labels", "low", "high"),
        ((b.model, b.baseline, *map(bound_text, (b.labels, b.low, b.high))) for b in summary.break_evens),
    )
    _write(run / "costs.csv", _COST_HEAD, map(_cost_row, summary.costs))


def read_summary(run: Path) -> Summary:
    """The findings of a comparison.

    Raises:
        UserError: the run is no finished comparison, or its files are damaged.
    """
    try:
        summary = _SUMMARY.validate_json((run / SUMMARY).read_bytes())
        costs = _COSTS.validate_json((run / COSTS).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{run} holds no finished comparison: there is no {Path(error.filename).name} in it") from error
    except (OSError, ValidationError) as error:
        raise UserError(f"{run} holds a damaged comparison ({str(error).splitlines()[0]}); run it again") from error
    return replace(summary, costs=costs)


def bound_text(bound: Bound) -> str:
    """'43', or '<20' and '>500' beyond what was measured."""
    return f"{BOUND_MARKS[bound.side]}{bound.labels:.0f}"


_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "expected_calibration_error")
_TABLE = (
    "model", "encoder", "strategy", "labels_per_class", "labels", "parameters_trained",
    *(f"{name}{end}" for name in _SCORES for end in ("", "_low", "_high")),
    "share_best", "share_within_tolerance", "chosen", "most_parameters_trained",
)  # fmt: skip
_COST_HEAD = (
    "model", "labels_per_class", "cell_seconds", "train_seconds", "peak_memory_mb", "pretrain_seconds",
    "baseline_seconds", "pays_after_classifiers", "seconds_per_label_saved",
)  # fmt: skip


def _table_row(row: Row) -> Sequence[Any]:
    scores = {score.name: score for score in row.scores}
    bounds = [number for name in _SCORES for number in (scores[name].value, scores[name].low, scores[name].high)]
    return (
        row.model, row.encoder, row.strategy, row.budget, row.num_labels, row.num_trained, *_numbers(*bounds),
        *_numbers(row.share_best, row.share_within), row.chosen,
        row.num_trained if row.most_trained is None else row.most_trained,
    )  # fmt: skip


def _cost_row(cost: Cost) -> Sequence[Any]:
    beside = cost.computing
    more: Sequence[Any] = ("", "", "", "")
    if beside is not None:
        per_label = "" if beside.seconds_per_label is None else f"{beside.seconds_per_label:.2f}"
        pays = "never" if beside.classifiers is None else beside.classifiers
        more = (f"{beside.pretrain_seconds:.1f}", f"{beside.baseline_seconds:.2f}", pays, per_label)
    memory = f"{cost.peak_memory_mb:.0f}"
    return (cost.model, cost.budget, f"{cost.seconds:.2f}", f"{cost.train_seconds:.2f}", memory, *more)


def _numbers(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.6f}" for value in values)


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, text.getvalue())
