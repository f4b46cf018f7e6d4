"""The audit of an exported file: what it says of an unchanged and of a spoilt model, its limit, chains, other tasks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_ft.build.auditing import audit
from ssl_ft.build.compressing import Work
from ssl_ft.errors import UserError
from ssl_ft.export.description import describe
from ssl_ft.export.folder import complete_folder
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.export.program_file import write_program
from ssl_ft.result import LabelsUsed
from tests.export.works import CONTRACT, make_model, make_work

pytest.importorskip("onnxruntime")


def exported(work: Work, *, seed: int = 0, name: str = "model.pt2") -> Path:
    """The work's own model as a file, or one with other weights; ONNX takes several times as long to write."""
    model, _ = make_model(work.card.task, seed=seed)
    file = work.run.path / "exported" / name
    file.parent.mkdir()
    if file.suffix == ".onnx":
        write_onnx(model, file, channels=3, size=CONTRACT.size)
    else:
        write_program(model, file, example=torch.zeros(2, 3, CONTRACT.size, CONTRACT.size))
    complete_folder(file.parent, describe(work.card, parent=work.run.parents[0].sha256))
    return file


def run_audit(work: Work, file: Path, *, max_drop: float | None = None, measures_costs: bool = False):
    return audit(
        file, work, run=work.run, num_threads=1, max_drop=max_drop, most_seconds=0.01, measures_costs=measures_costs
    )


def told(work: Work):
    return json.loads((work.run.path / "audit.json").read_text())


def test_an_unchanged_model_loses_nothing(tmp_path):
    work = make_work(tmp_path)
    file = exported(work, name="model.onnx")
    found = run_audit(work, file, max_drop=0.0)
    assert (found.is_shipped, found.num_images, found.num_scored) == (True, 20, 2)
    rows = {(row.name, row.model): row for row in found.metrics}
    assert rows["accuracy_drop", "exported against parent"].value == 0
    assert rows["agreement", "exported against parent"].value == 1
    truth = work.images.labels[work.split.test]
    pixels = work.images.inputs(work.split.test, CONTRACT).pixels
    with torch.no_grad():
        right = work.model(CONTRACT.normalise(torch.from_numpy(pixels))).argmax(1).numpy() == truth
    assert rows["accuracy", "exported"].value == rows["accuracy", "parent"].value == pytest.approx(right.mean())
    assert rows["accuracy", "exported"].labels_per_class == 5
    assert (file.parent / "model.json").is_file()


@pytest.mark.slow
def test_costs_are_measured_of_parent_and_file(tmp_path):
    work = make_work(tmp_path)
    file = exported(work, name="model.onnx")
    rows = {(row.name, row.model): row for row in run_audit(work, file, measures_costs=True).metrics}
    assert rows["size_mb", "exported"].value == pytest.approx(file.stat().st_size / 1e6)
    for model in ("parent, PyTorch", "parent, ONNX", "exported"):
        assert rows["latency_ms_batch_1", model].value > 0
        assert rows["images_per_second_batch_32", model].value > 0
        assert 20 < rows["inference_memory_mb", model].value < 3000
    # torch's own packages weigh more than the runtime's.
    memory = {model: rows["inference_memory_mb", model].value for model in ("parent, PyTorch", "exported")}
    assert memory["exported"] < memory["parent, PyTorch"]
    assert told(work)["models"][2]["speeds"][1]["batch"] == 32
    assert not list(work.run.path.glob(".audit-*"))


def test_a_spoilt_model_is_refused(tmp_path):
    work = make_work(tmp_path)
    # Labels that the parent has all right.
    pixels = work.images.inputs(work.split.test, CONTRACT).pixels
    with torch.no_grad():
        guess = work.model(CONTRACT.normalise(torch.from_numpy(pixels))).argmax(1).numpy()
    work.images.labels[work.split.test] = guess
    file = exported(work, seed=1)
    found = run_audit(work, file, max_drop=0.01)
    rows = {row.name: row for row in found.metrics if row.model == "exported against parent"}
    assert not found.is_shipped
    assert not file.parent.exists()
    # A right parent: what the child has otherwise is what it lost.
    assert rows["accuracy_drop"].value == pytest.approx(1 - rows["agreement"].value)
    assert rows["accuracy_drop"].low <= rows["accuracy_drop"].value <= rows["accuracy_drop"].high
    assert told(work)["is_shipped"] is False
    assert any("more than max_drop=0.01" in note for note in work.run.notes)


def test_the_next_link_is_held_against_the_first(tmp_path):
    one = make_work(tmp_path / "one")
    run_audit(one, exported(one, seed=1))
    one.run.finish(metrics=[], labels_used=LabelsUsed(), test_scored=2)
    two = make_work(tmp_path / "two", parent=one.run.path)
    with np.load(one.run.path / "audit.npz") as held:
        kept = {name: held[name] for name in held}
    # The first model had everything right: the second link's drop is counted from there.
    truth = two.images.labels[two.split.test]
    kept["first"] = np.eye(3, dtype=np.float32)[truth]
    np.savez(one.run.path / "audit.npz", **kept)
    run_audit(two, exported(two))
    content = told(two)
    assert content["drop"]["value"] == 0
    assert content["first"] == str(tmp_path / "one" / "parent" / "classifier")
    assert content["drop_from_first"]["value"] == pytest.approx(1 - content["scores"]["parent"]["score"])
    with np.load(two.run.path / "audit.npz") as held:
        assert np.array_equal(held["first"], kept["first"])


@pytest.mark.parametrize(("task", "score"), [("multi_label", "mean_average_precision"), ("regression", "mean_r2")])
def test_other_tasks_have_scores_of_their_own(tmp_path, task, score):
    work = make_work(tmp_path, task=task)
    found = run_audit(work, exported(work))
    rows = {(row.name, row.model): row for row in found.metrics if row.target is None}
    assert rows[f"{score}_drop", "exported against parent"].value == pytest.approx(0, abs=1e-6)
    assert rows["agreement", "exported against parent"].value == pytest.approx(1, abs=1e-6)
    assert (score, "exported") in rows
    assert (("expected_calibration_error", "exported") in rows) == (task == "multi_label")


def test_without_test_images_there_is_no_audit(tmp_path):
    work = make_work(tmp_path)
    work = replace(work, split=replace(work.split, test=np.empty(0, np.int64)))
    with pytest.raises(UserError, match="has no test images to audit"):
        run_audit(work, exported(work))
