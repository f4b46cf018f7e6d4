"""Tables and predictions of scored multi-label and regression models, read again from a run folder.

They are written by `target_tables.py`; how a file that cannot be used is told is a matter of `extras.py`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TargetTable:
    """`per_label.csv` or `per_target.csv`: heads and rows of text as they stand there."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class TargetPredictions:
    """Truth and prediction of each test image, float64 [N, K], NaN = not known."""

    names: tuple[str, ...]
    task: str
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]


def read_target_table(path: Path, _problems: list[str]) -> TargetTable:
    """The table; raises ValueError where it is none."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [tuple(row) for row in csv.reader(lines) if row]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("its rows differ in length")
    return TargetTable(rows[0], tuple(rows[1:]))


def read_target_predictions(path: Path, _problems: list[str]) -> TargetPredictions:
    """The predictions; raises ValueError where shapes do not fit."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        truth, predicted = (np.asarray(arrays[key], dtype=np.float64) for key in ("truth", "predicted"))
        names, task = tuple(str(name) for name in arrays["names"]), str(arrays["task"])
    if truth.ndim != 2 or truth.shape != predicted.shape or truth.shape[1] != len(names):
        raise ValueError(f"truth of shape {truth.shape}, predictions of shape {predicted.shape}, {len(names)} names")
    return TargetPredictions(names, task, truth, predicted)
