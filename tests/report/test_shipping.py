"""The page on audits: a sentence, a table and a Pareto picture for each first model; a damaged file left out."""

from pathlib import Path
from typing import Any

from ssl_ft.report.page import write_report
from tests.report.fake_runs import metric, result, write_json

NBSP = "\N{NO-BREAK SPACE}"


def costs(name: str, *, ms: float, size: int) -> dict[str, Any]:
    speeds = [
        {"batch": batch, "rounds": 15, "median_ms": ms * batch, "low_ms": 0.9 * ms * batch, "high_ms": 1.2 * ms * batch}
        for batch in (1, 32)
    ]
    memory = {"total_mb": 321.0, "own_mb": 40.0}
    return {"name": name, "size_bytes": size, "speeds": speeds, "memory": memory}


def audit(**changes: Any) -> dict[str, Any]:
    drop = {"name": "accuracy_drop", "value": 0.0125, "low": -0.002, "high": 0.027, "n": 450}
    return {
        "format": 1,
        "file": "model.onnx",
        "task": "classes",
        "score": "accuracy",
        "num_images": 450,
        "drop": drop,
        "first": "runs/teacher/classifier",
        "drop_from_first": drop,
        "agreement": drop | {"name": "agreement", "value": 0.963},
        "max_drop": 0.02,
        "is_shipped": True,
        "threads": 2,
        "machine": "a processor",
        "scores": {
            "parent": {"score": 0.9, "calibration": 0.031},
            "exported": {"score": 0.8875, "calibration": 0.044},
        },
        "models": [
            costs("parent, PyTorch", ms=40.0, size=44_000_000),
            costs("parent, ONNX", ms=30.0, size=44_100_000),
            costs("exported", ms=10.0, size=11_000_000),
        ],
        **changes,
    }


def page(folder: Path) -> str:
    return write_report([folder], folder / "page.html", title="Shipped").read_text()


def add(folder: Path, content: dict[str, Any]) -> None:
    rows = [metric("accuracy", 0.8875, model="exported", labels=10), metric("accuracy", 0.9, model="parent", labels=10)]
    write_json(folder / "result.json", result("compress", metrics=rows, run=folder.name))
    write_json(folder / "audit.json", content)


def test_a_chain_has_its_picture_and_table(tmp_path):
    add(tmp_path / "pruned", audit())
    lost = {"name": "accuracy_drop", "value": 0.031, "low": 0.011, "high": 0.05, "n": 450}
    add(tmp_path / "quantized", audit(drop_from_first=lost, is_shipped=False))
    text = page(tmp_path)
    for part in (
        'id="shipping"',
        f"The exported file lost 1.25{NBSP}points of accuracy against its parent on 450{NBSP}test images",
        "interval of the loss \N{MINUS SIGN}0.20 to 2.70",
        "More than max_drop=0.02 allows: it was not handed over.",
        "From teacher: accuracy on",
        "teacher, PyTorch: lost 0, 40 ms, 44 MB; teacher, ONNX: lost 0, 30 ms, 44.1 MB",
        "quantized: lost 3.1, 10 ms, 11 MB",
        "3.10 (1.10 to 5.00)",
        f"3.1{NBSP}% → 4.4{NBSP}%",
        f"11{NBSP}MB (25.0{NBSP}% of the parent",
        "10 (4.0 × PyTorch, 3.0 × ONNX)",
        f"321{NBSP}MB",
        "Measured on a processor",
        "quantized was not handed over.",
    ):
        assert part in text, part
    # What was scored is told here, not among label budgets.
    assert 'id="accuracy"' not in text
    assert page(tmp_path) == text


def test_an_audit_without_costs_has_a_table_alone(tmp_path):
    add(tmp_path / "numbers", audit(score="mean_r2", task="regression", models=[], max_drop=None))
    text = page(tmp_path)
    assert "lost 0.01 of mean r2" in text
    assert "What models lost over latency" not in text


def test_a_damaged_audit_is_left_out(tmp_path):
    add(tmp_path / "pruned", audit())
    (tmp_path / "pruned" / "audit.json").write_text("{")
    text = page(tmp_path)
    assert 'id="shipping"' not in text
    assert "audit.json" in text
