"""Tables of scored multi-label and regression models for the run folder: a row a target, and every prediction.

Reading them again is in `target_files.py`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.evaluate.target_metrics import TargetEstimate, f1_counts

LABEL_COLUMNS = ("average_precision", "auroc", "precision", "recall", "f1")
NUMBER_COLUMNS = ("mae", "rmse", "r2", "spearman")


def write_label_table(
    run: Path,
    targets: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    names: Sequence[str],
    estimates: Sequence[TargetEstimate],
) -> None:
    """Write `per_label.csv`: of each label its known images, its positives and its scores; blank where undefined.

    Args:
        run: the run folder.
        targets: float32 [N, K] of 0 and 1, NaN = missing.
        probabilities: float32 [N, K].
        names: of the labels.
        estimates: holds average precision and AUROC of each label.
    """
    counts = f1_counts(targets, probabilities.astype(np.float64), np.ones((len(targets), 1)))[..., 0]
    known = _values(estimates)
    rows = []
    for column, (name, hits, predicted, positives) in enumerate(zip(names, *counts.tolist(), strict=True)):
        scores = [known.get((name, metric)) for metric in LABEL_COLUMNS[:2]]
        scores += [_ratio(hits, predicted), _ratio(hits, positives), _ratio(2 * hits, predicted + positives)]
        num_known = int((~np.isnan(targets[:, column])).sum())
        rows.append([name, num_known, int(positives), *map(_shown, scores)])
    _write(run / "per_label.csv", [["label", "n", "positives", *LABEL_COLUMNS], *rows])


def write_number_table(run: Path, names: Sequence[str], estimates: Sequence[TargetEstimate]) -> None:
    """Write `per_target.csv`: of each target its known images and its scores, in its unit where they have one."""
    known = _values(estimates)
    n = {row.target: row.estimate.n for row in estimates}
    rows = [[name, n[name], *(_shown(known.get((name, metric))) for metric in NUMBER_COLUMNS)] for name in names]
    _write(run / "per_target.csv", [["target", "n", *NUMBER_COLUMNS], *rows])


def write_predictions(
    run: Path,
    targets: NDArray[np.float32],
    outputs: NDArray[np.float32],
    names: Sequence[str],
    *,
    task: str,
) -> None:
    """Write `target_predictions.npz`: truth and predicted, float32 [N, K], names and task."""
    np.savez_compressed(
        run / "target_predictions.npz",
        truth=targets,
        predicted=outputs,
        names=np.array(list(names), dtype=np.str_),
        task=np.array(task),
    )


def _values(estimates: Sequence[TargetEstimate]) -> dict[tuple[str | None, str], float]:
    return {(row.target, row.estimate.name): row.estimate.value for row in estimates}


def _ratio(top: float, bottom: float) -> float | None:
    return top / bottom if bottom else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
