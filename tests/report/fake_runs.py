"""Run folders as the stages write them, with plausible numbers and no training: pretrain, probe, finetune."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_ft.report.pictures import picture_grid

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROBE_VALUES: dict[str, dict[int | None, float]] = {
    "encoder": {1: 0.741, 2: 0.842, 5: 0.921, 10: 0.9461, None: 0.975},
    "untrained": {1: 0.561, 2: 0.672, 5: 0.806, 10: 0.880, None: 0.958},
    "pixels": {1: 0.571, 2: 0.699, 5: 0.843, 10: 0.9012, None: 0.954},
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(head)
        writer.writerows(rows)


def metric(
    name: str, value: float, *, model: str | None, labels: float | None, width: float | None = 0.006
) -> dict[str, Any]:
    """One row of result.json's metrics on 450 test images; `width` is half the interval, None for no interval."""
    return {
        "name": name,
        "value": value,
        "low": None if width is None else value - width,
        "high": None if width is None else value + width,
        "n": 450,
        "split": "test",
        "labels_per_class": labels,
        "model": model,
    }


def result(stage: str, **changes: Any) -> dict[str, Any]:
    """A result.json of the stage with no metrics, changed as asked."""
    return {
        "schema_version": 1,
        "stage": stage,
        "run": stage,
        "parents": [],
        "settings": {"seed": 0},
        "data": [],
        "labels_used": {"train": 0, "val": 0, "test": 0},
        "test_scored": 0,
        "seconds": 12.0,
        "peak_memory_mb": 512.0,
        "metrics": [],
    } | changes


def probe_metrics(values: dict[str, dict[int | None, float]] = PROBE_VALUES) -> list[dict[str, Any]]:
    return [
        metric("accuracy", value, model=model, labels=labels, width=0.02 / (labels or 30) ** 0.5)
        for model, by_labels in values.items()
        for labels, value in by_labels.items()
    ]


def _data(roles: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"role": role, "location": "digits", "kind": "digits", "num_images": n, "fingerprint": f"{role:x<16}"}
        for role, n in roles.items()
    ]


def _manifest(folder: Path, *, stage: str, data: list[dict[str, Any]], **more: Any) -> None:
    content = {
        "stage": stage,
        "created": "2025-03-04T05:06:07+00:00",
        "command": f"ssl-ft {stage} out={folder.name}",
        "versions": {"python": "3.11.7", "torch": "2.11.0", "timm": "1.0.20", "ssl_ft": "0.1.0"},
        "device": "cpu",
        "num_ranks": 1,
        "parents": [],
        "notes": [],
        "data": data,
    }
    write_json(folder / "manifest.json", content | more)


def _tiles(rng: np.random.Generator, count: int, channels: int) -> np.ndarray:
    """uint8 [count, 16, 16, channels]: soft blobs, so that the sheets look like pictures."""
    grid = np.linspace(-1, 1, 16)
    centre = rng.uniform(-0.5, 0.5, (count, 2, 1, 1))
    distance = (grid[None, None, :] - centre[:, 0]) ** 2 + (grid[None, :, None] - centre[:, 1]) ** 2
    tone = rng.uniform(0.3, 1, (count, 1, 1, channels))
    return (255 * np.exp(-3 * distance)[..., None] * tone).astype(np.uint8)


def write_pretrain(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    data = _data({"pool": 1347})
    settings = {"objective": {"name": "joint", "weights": [1.0, 0.5]}, "steps": 1000, "seed": 0, "data": "digits"}
    write_json(
        folder / "result.json", result("pretrain", settings=settings, data=data, seconds=83.4, peak_memory_mb=642.0)
    )
    _manifest(folder, stage="pretrain", data=data, notes=["The smallest side is 8 pixels: views are not blurred."])
    rows: list[dict[str, Any]] = []
    for step in range(10, 1001, 10):
        simclr, masked = 4.8 * np.exp(-step / 400) + 1.2, 0.9 * np.exp(-step / 300) + 0.2
        noise = rng.normal(0, 0.03)
        row = {
            "step": step,
            "kind": "train",
            "loss": simclr + masked + noise,
            "simclr": simclr + noise,
            "masked": masked,
        }
        row |= {"lr": 1e-3 * np.cos(step / 1000 * np.pi / 2), "images_per_second": 4800.0 + step, "grad_norm": 1.2}
        rows.append(row | {"gradient_cosine": 0.2 + noise})
        if step % 100 == 0:
            knn = 0.95 - 0.5 * np.exp(-step / 250)
            scores = {"knn_accuracy": knn, "val_accuracy": knn - 0.03, "embedding_std": 0.07 + noise / 10}
            rows.append({"step": step, "kind": "eval", "rank_me": 20 + step / 50} | scores)
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    write_json(folder / "encoder" / "config.json", {"architecture": "resnet10t", "num_parameters": 4_921_312})
    write_csv(
        folder / "damaged.csv", ("path", "reason", "replacement"), [("a/broken.png", "truncated file", "a/0007.png")]
    )
    write_csv(folder / "duplicates.csv", ("pool", "test"), [("pool/3.png", "test/9.png")])
    tiles = _tiles(rng, 8, 1)
    pictures = folder / "pictures"
    views = [tiles, tiles[:, ::-1], np.ascontiguousarray(tiles[:, :, ::-1])]
    picture_grid(
        views, pictures / "views.png", caption="Two views of each image.", row_names=("original", "view 1", "view 2")
    )
    hidden = tiles.copy()
    hidden[:, ::2] = 0
    picture_grid(
        [tiles, hidden, tiles // 2 + 40],
        pictures / "reconstruction.png",
        caption="Predictions of hidden patches, shown with the true patch statistics.",
        row_names=("original", "visible", "predicted"),
    )
    return folder


def write_probe(folder: Path, parent: Path, *, metrics: list[dict[str, Any]] | None = None) -> Path:
    rng = np.random.default_rng(1)
    data = _data({"train": 1107, "val": 240, "test": 450})
    parents = [{"path": str(parent / "encoder"), "sha256": "ab" * 32, "kind": "encoder"}]
    settings = {"labels": [1, 2, 5, 10, None], "draws": 20, "seed": 0}
    content = result("probe", settings=settings, data=data, parents=parents, test_scored=3, seconds=21.8)
    content["metrics"] = probe_metrics() if metrics is None else metrics
    content["labels_used"] = {"train": 1107, "val": 240, "test": 450}
    write_json(folder / "result.json", content)
    _manifest(folder, stage="probe", data=data, parents=parents)
    matrix = np.diag(np.full(10, 43)) + rng.poisson(0.25, (10, 10))
    confusion = {"class_names": CLASSES, "matrix": matrix.tolist(), "model": "encoder", "labels_per_class": None}
    write_json(folder / "confusion.json", confusion)
    scores = [(name, 45, 0.95 - 0.01 * i, 0.96 - 0.02 * i, 0.95 - 0.015 * i) for i, name in enumerate(CLASSES)]
    write_csv(folder / "per_class.csv", ("class", "n", "precision", "recall", "f1"), scores)
    labels = np.repeat(np.arange(10), 60)
    angle = labels * 2 * np.pi / 10
    xy = 6 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, 1, (600, 2))
    np.savez(folder / "embedding.npz", xy=xy.astype(np.float32), labels=labels, class_names=np.array(CLASSES))
    neighbours = [_tiles(rng, 9, 3) for _ in range(4)]
    picture_grid(
        neighbours, folder / "pictures" / "neighbours.png", caption="First column: the query; then its nearest images."
    )
    return folder


def write_finetune(folder: Path, parent: Path) -> Path:
    data = _data({"train": 1107, "val": 240, "test": 450})
    content = result(
        "finetune", data=data, parents=[{"path": str(parent / "encoder"), "sha256": "ab" * 32, "kind": "encoder"}]
    )
    content["metrics"] = [
        metric("accuracy", 0.9812, model="full", labels=None, width=0.004),
        metric("accuracy", 0.9702, model="scratch", labels=None, width=0.005),
        metric("expected_calibration_error", 0.0213, model="full", labels=None, width=None),
    ]
    content |= {"test_scored": 2, "seconds": 95.0, "labels_used": {"train": 1107, "val": 240, "test": 450}}
    write_json(folder / "result.json", content)
    _manifest(folder, stage="finetune", data=data)
    rows = [
        {"step": step, "kind": "eval", "val_accuracy": 0.98 - 0.6 * np.exp(-step / 20)} for step in range(10, 101, 10)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    write_json(folder / "classifier" / "config.json", {"architecture": "resnet10t", "num_parameters": 4_926_442})
    return folder


def write_demo(folder: Path) -> Path:
    """A folder with one run of each stage, as the demo leaves it."""
    pretrain = write_pretrain(folder / "pretrain")
    write_probe(folder / "probe", pretrain)
    write_finetune(folder / "finetune", pretrain)
    return folder
