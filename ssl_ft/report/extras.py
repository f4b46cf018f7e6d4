"""The optional files of a run folder: curves, pictures, confusion matrix, tables, embedding, architecture.

Each reader returns what is there; a file that cannot be used adds one sentence to `problems` and is left out.
`result.json` and `manifest.json` are read in `runs.py`.
"""

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_ft.evaluate.summary import Summary
from ssl_ft.report.audit_file import AUDIT, AuditFile, read_audit
from ssl_ft.report.comparison_files import SUMMARY, read_summary
from ssl_ft.report.shift_section import ShiftFile, read_shift
from ssl_ft.report.target_files import (
    TargetPredictions,
    TargetTable,
    read_target_predictions,
    read_target_table,
)
from ssl_ft.report.tuning_section import read_tuning
from ssl_ft.tuning.records import RECORDS, StudyRecord

Content = TypeVar("Content")

_UNUSABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    csv.Error,
    zipfile.BadZipFile,
    zlib.error,
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A contact sheet: PNG bytes, size in pixels, what it shows and what its rows are, top to bottom."""

    name: str
    png: bytes
    width: int
    height: int
    caption: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Confusion:
    """Counts of test images, float64 [C, C]: rows are true classes, columns predicted ones."""

    class_names: tuple[str, ...]
    matrix: NDArray[np.float64]
    model: str | None
    labels_per_class: int | float | None


@dataclass(frozen=True)
class Embedding:
    """Points of a two-dimensional map: float32 [N, 2], class index int64 [N] (negative: no label)."""

    xy: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ClassScore:
    """One row of per_class.csv; the scores are shares in [0, 1], NaN where undefined."""

    name: str
    num_images: int
    precision: float
    recall: float
    f1: float


Curve = tuple[tuple[int, float], ...]
"""(step, value) pairs, steps ascending."""


@dataclass(frozen=True)
class Extras:
    """All optional content; empty or None where the file is absent or unusable."""

    train_curves: dict[str, Curve]
    eval_curves: dict[str, Curve]
    pictures: tuple[Picture, ...]
    confusion: Confusion | None
    per_class: tuple[ClassScore, ...]
    embedding: Embedding | None
    damaged: tuple[tuple[str, str, str], ...]
    duplicates: tuple[tuple[str, str], ...]
    architecture: str | None
    num_parameters: int | None
    comparison: Summary | None = None
    shift: ShiftFile | None = None
    audit: AuditFile | None = None
    target_table: TargetTable | None = None
    target_predictions: TargetPredictions | None = None
    tuning: StudyRecord | None = None


def read_extras(folder: Path, problems: list[str]) -> Extras:
    """Reads the optional files of a run folder; appends one sentence to `problems` for each unusable one."""
    no_curves: tuple[dict[str, Curve], dict[str, Curve]] = ({}, {})
    train, evals = _guarded(_read_curves, folder / "metrics.jsonl", no_curves, problems)
    unknown: tuple[str | None, int | None] = (None, None)
    architecture = unknown
    for name in ("encoder", "classifier"):
        if architecture == unknown:
            architecture = _guarded(_read_architecture, folder / name / "config.json", unknown, problems)
    pictures = [
        _guarded(_read_picture, path, None, problems)
        for path in sorted((folder / "pictures").glob("*.png"), key=_picture_order)
    ]
    target_table: TargetTable | None = None
    for name in ("per_label.csv", "per_target.csv"):
        target_table = target_table or _guarded(read_target_table, folder / name, None, problems)
    return Extras(
        train_curves=train,
        eval_curves=evals,
        pictures=tuple(picture for picture in pictures if picture is not None),
        confusion=_guarded(_read_confusion, folder / "confusion.json", None, problems),
        per_class=_guarded(_read_per_class, folder / "per_class.csv", (), problems),
        embedding=_guarded(_read_embedding, folder / "embedding.npz", None, problems),
        damaged=_guarded(_read_damaged, folder / "damaged.csv", (), problems),
        duplicates=_guarded(_read_duplicates, folder / "duplicates.csv", (), problems),
        architecture=architecture[0],
        num_parameters=architecture[1],
        comparison=_guarded(_read_comparison, folder / SUMMARY, None, problems),
        audit=_guarded(read_audit, folder / AUDIT, None, problems),
        shift=_guarded(read_shift, folder / "shift.json", None, problems),
        target_table=target_table,
        target_predictions=_guarded(read_target_predictions, folder / "target_predictions.npz", None, problems),
        tuning=_guarded(read_tuning, folder / RECORDS, None, problems),
    )


def _guarded(reader: Callable[[Path, list[str]], Content], path: Path, absent: Content, problems: list[str]) -> Content:
    if not path.is_file():
        return absent
    try:
        return reader(path, problems)
    except _UNUSABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problems.append(f"{path.name} could not be read ({reason}) and is left out.")
        return absent


def _read_curves(path: Path, problems: list[str]) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Curves of training and evaluation rows by key. A step logged twice (a resumed run) keeps its last value."""
    curves: dict[str, dict[str, dict[int, float]]] = {"train": {}, "eval": {}}
    num_unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
                kind, step = curves[row["kind"]], int(row["step"])
            except (ValueError, KeyError, TypeError):
                num_unreadable += 1
                continue
            for key, value in row.items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if key != "step" and is_number and math.isfinite(value):
                    kind.setdefault(key, {})[step] = float(value)
    if num_unreadable:
        problems.append(f"{path.name}: unreadable lines left out of the curves: {num_unreadable}.")
    train, evals = (
        {key: tuple(sorted(values.items())) for key, values in curves[kind].items()} for kind in ("train", "eval")
    )
    return train, evals


def _read_comparison(path: Path, _problems: list[str]) -> Summary:
    return read_summary(path.parent)


def _read_architecture(path: Path, _problems: list[str]) -> tuple[str | None, int | None]:
    content = json.loads(path.read_text("utf-8"))
    architecture, num_parameters = content.get("architecture"), content.get("num_parameters")
    if isinstance(architecture, dict):
        architecture = architecture.get("name")
    return (
        str(architecture) if architecture is not None else None,
        int(num_parameters) if num_parameters is not None else None,
    )


def _read_picture(path: Path, problems: list[str]) -> Picture:
    png = path.read_bytes()
    if not png.startswith(_PNG_SIGNATURE) or len(png) < 24:
        raise ValueError("it is not a PNG")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    words: dict[str, Any] = _guarded(_read_words, path.with_suffix(".json"), {}, problems)
    rows = tuple(str(row) for row in words.get("rows") or ())
    return Picture(path.stem, png, width, height, str(words.get("caption") or ""), rows)


def _picture_order(path: Path) -> tuple[int, str]:
    """Inputs before outputs; further pictures by name."""
    usual = ("views", "reconstruction")
    return (usual.index(path.stem) if path.stem in usual else len(usual), path.name)


def _read_words(path: Path, _problems: list[str]) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not an object with a caption")
    return content


def _read_confusion(path: Path, _problems: list[str]) -> Confusion:
    content = json.loads(path.read_text("utf-8"))
    names = tuple(str(name) for name in content["class_names"])
    matrix = np.asarray(content["matrix"], dtype=np.float64)
    if matrix.shape != (len(names), len(names)) or not len(names):
        raise ValueError(f"matrix of shape {matrix.shape} for {len(names)} classes")
    return Confusion(names, matrix, content.get("model"), content.get("labels_per_class"))


def _read_embedding(path: Path, _problems: list[str]) -> Embedding | None:
    # Opened here, because numpy leaves a file open that turns out to be no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        xy = np.asarray(arrays["xy"], dtype=np.float32)
        labels = np.asarray(arrays["labels"], dtype=np.int64)
        names = tuple(str(name) for name in arrays["class_names"])
    if xy.ndim != 2 or xy.shape[1] != 2 or labels.shape != xy.shape[:1]:
        raise ValueError(f"xy of shape {xy.shape} with labels of shape {labels.shape}")
    finite = np.isfinite(xy).all(axis=1)
    if not finite.any():
        raise ValueError("it has no finite point")
    return Embedding(xy[finite], labels[finite], names)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return list(csv.DictReader(lines))


def _read_per_class(path: Path, _problems: list[str]) -> tuple[ClassScore, ...]:
    def score(text: str) -> float:
        return float(text) if text else math.nan

    return tuple(
        ClassScore(row["class"], int(row["n"]), score(row["precision"]), score(row["recall"]), score(row["f1"]))
        for row in _rows(path)
    )


def _read_damaged(path: Path, _problems: list[str]) -> tuple[tuple[str, str, str], ...]:
    return tuple((row["path"], row["reason"], row.get("replacement") or "") for row in _rows(path))


def _read_duplicates(path: Path, _problems: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((row["pool"], row["test"]) for row in _rows(path))
