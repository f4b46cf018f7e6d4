"""Scores by target on the page: tables with what is undefined shown as such, scatters, unusable files."""

from pathlib import Path

import numpy as np
import pytest

from ssl_ft.evaluate.target_metrics import estimate_labels, estimate_numbers
from ssl_ft.report.page import write_report
from ssl_ft.report.runs import Run, gather_runs
from ssl_ft.report.sections import metrics_table
from ssl_ft.report.target_tables import write_label_table, write_number_table, write_predictions
from ssl_ft.report.target_views import target_finding, target_view
from tests.report.fake_runs import metric, result, write_json


def run_of(folder: Path, *metrics: dict[str, object]) -> Run:
    write_json(folder / "result.json", result("finetune", metrics=list(metrics)))
    return gather_runs([folder]).runs[0]


def labels_run(folder: Path) -> Run:
    """Two labels, of which the second has no positive on test."""
    folder.mkdir(exist_ok=True)
    targets = np.array([[1, 0], [0, 0], [1, 0], [np.nan, 0]], np.float32)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.2], [0.5, 0.1]], np.float32)
    names = ("red", "<b>")
    estimates = estimate_labels(targets, probabilities[None].astype(float), names=names, seed=0, num_resamples=10)
    write_label_table(folder, targets, probabilities, names, estimates)
    write_predictions(folder, targets, probabilities, names, task="multi_label")
    return run_of(folder, metric("mean_average_precision", 0.91, model="full", labels=40))


def numbers_run(folder: Path, *, count: int = 8) -> Run:
    folder.mkdir(exist_ok=True)
    truth = np.random.default_rng(0).normal(size=(30, count)).astype(np.float32)
    names = [f"t{number}" for number in range(count)]
    estimates = estimate_numbers(truth, truth[None] + 0.1, names=names, seed=0, num_resamples=10)
    write_number_table(folder, names, estimates)
    write_predictions(folder, truth, truth + np.float32(0.1), names, task="regression")
    return run_of(folder, metric("mean_r2", 0.62, model="scratch", labels=None))


def test_labels_have_a_row_each_and_a_dash_where_nothing_is_defined(tmp_path: Path) -> None:
    view = target_view(labels_run(tmp_path / "run"), prefix="p")
    assert view is not None
    assert view.table.head[:4] == ("Label", "Images", "Positives", "Average precision")
    assert [row[:3] for row in view.table.rows] == [("red", "3", "2"), ("<b>", "4", "0")]
    assert view.table.rows[0][3] == "100.0\N{NO-BREAK SPACE}%"
    assert view.table.rows[1][3:] == ("\N{EN DASH}",) * 5
    assert view.scatters == ()


def test_numbers_have_a_row_each_and_the_first_few_a_scatter(tmp_path: Path) -> None:
    view = target_view(numbers_run(tmp_path / "run"), prefix="p")
    assert view is not None
    assert len(view.table.rows) == 8
    assert [scatter.title for scatter in view.scatters] == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert "t0: predicted over true values of 30" in view.scatters[0].svg
    assert view.left_out == "Shown are the first 6 of 8 targets."


def test_the_sentence_on_top(tmp_path: Path) -> None:
    said = target_finding(labels_run(tmp_path / "labels")).replace("\N{NO-BREAK SPACE}", " ")
    expected = (
        "With 40 labelled images the fine-tuned network reaches a mean average precision over its labels of 91.0 %"
    )
    assert said.startswith(expected)
    said = target_finding(numbers_run(tmp_path / "numbers"))
    assert said.startswith("With all labels the same network trained from scratch reaches an R² of 0.62 (95")
    assert target_finding(run_of(tmp_path / "classes", metric("accuracy", 0.9, model="full", labels=1))) == ""


def test_the_page_escapes_names_and_is_the_same_each_time(tmp_path: Path) -> None:
    labels_run(tmp_path / "labels")
    numbers_run(tmp_path / "numbers", count=1)
    pages = [write_report([tmp_path], tmp_path / f"{name}.html", title="T").read_text() for name in "ab"]
    assert pages[0] == pages[1]
    assert "&lt;b&gt;" in pages[0]
    assert "<b></th>" not in pages[0]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("per_target.csv", b"target,n\nt0\n", "its rows differ in length"),
        ("target_predictions.npz", b"no", "target_predictions.npz could not be read"),
    ],
)
def test_files_that_cannot_be_used_are_told(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    numbers_run(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    run = gather_runs([tmp_path / "run"]).runs[0]
    assert any(told in problem for problem in run.problems)


def test_predictions_of_other_shapes_are_told(tmp_path: Path) -> None:
    numbers_run(tmp_path / "run")
    place = tmp_path / "run" / "target_predictions.npz"
    np.savez(place, truth=np.zeros((3, 1)), predicted=np.zeros((3, 2)), names=["a"], task="regression")
    run = gather_runs([tmp_path / "run"]).runs[0]
    assert any("truth of shape (3, 1), predictions of shape (3, 2)" in problem for problem in run.problems)
    view = target_view(run, prefix="p")
    assert view is not None
    assert view.scatters == ()


def budgets_shown(*runs: Run) -> list[str]:
    """Head and cells of the budgets' column."""
    table = metrics_table(runs)
    return [table.head[3], *(row[3].replace("\N{NO-BREAK SPACE}", " ") for row in table.rows)]


def test_a_budget_is_told_in_what_it_counts(tmp_path: Path) -> None:
    settings = {"data": {"task": "multi_label"}}
    (tmp_path / "images").mkdir()
    rows = [metric("mean_average_precision", 0.9, model="full", labels=budget) for budget in (200, 0.5, None)]
    write_json(tmp_path / "images" / "result.json", result("finetune", metrics=rows, settings=settings))
    images = gather_runs([tmp_path / "images"]).runs[0]
    classes = run_of(tmp_path / "classes", metric("accuracy", 0.9, model="full", labels=10))
    assert budgets_shown(images) == ["Labelled images", "200", "50 %", "all"]
    assert budgets_shown(classes) == ["Labels per class", "10"]
    assert budgets_shown(images, classes) == ["Labels", "200 images", "50 %", "all", "10 per class"]
