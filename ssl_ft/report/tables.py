"""Tables of a judged classifier for the run folder: confusion matrix and per-class scores."""

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.evaluate.metrics import class_scores, confusion_matrix


def write_confusion(
    run: Path,
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    class_names: tuple[str, ...],
    *,
    model: str,
    labels_per_class: int | float | None,
) -> None:
    """Write `confusion.json` and `per_class.csv`.

    Args:
        run: the run folder.
        labels: int64 [N].
        predictions: int64 [N].
        class_names: by class number.
        model: who predicted.
        labels_per_class: its budget, None = all.
    """
    matrix = confusion_matrix(labels, predictions, len(class_names)).tolist()
    content = {
        "class_names": list(class_names),
        "matrix": matrix,
        "model": model,
        "labels_per_class": labels_per_class,
    }
    (run / "confusion.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    with (run / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "n", "precision", "recall", "f1"])
        for row in class_scores(labels, predictions, class_names):
            writer.writerow([row.name, row.n, round(row.precision, 6), round(row.recall, 6), round(row.f1, 6)])
