"""Finding and reading run folders: what counts as a run, lineage, curves after a resume, and refusals."""

import json
from pathlib import Path

import pytest

from ssl_ft.errors import UserError
from ssl_ft.report.runs import gather_runs, levels
from tests.report.fake_runs import result, write_demo, write_finetune, write_json, write_pretrain, write_probe


def names(folders: list[Path]) -> list[str]:
    return [run.name for run in gather_runs(folders).runs]


def test_runs_are_found_one_level_down_once_each_parents_first(tmp_path: Path) -> None:
    demo = write_demo(tmp_path / "demo")
    write_json(demo / "result.json", result("run"))  # repeats the numbers of its stages
    write_json(demo / "probe" / "deeper" / "result.json", result("probe"))
    assert names([demo, demo / "pretrain"]) == ["pretrain", "probe", "finetune"]
    assert names([demo / "probe", demo / "pretrain"])[0] == "pretrain"


def test_a_run_without_its_end_is_named_as_unfinished(tmp_path: Path) -> None:
    demo = write_demo(tmp_path / "demo")
    write_json(demo / "second" / "manifest.json", {"stage": "pretrain"})
    (demo / "notes").mkdir()
    assert gather_runs([demo]).unfinished == ("second",)


def test_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    one = write_probe(tmp_path / "a" / "probe", tmp_path)
    other = write_probe(tmp_path / "b" / "probe", tmp_path)
    assert names([one, other]) == ["a/probe", "b/probe"]


def test_parents_are_found_by_path_and_after_a_move_by_name(tmp_path: Path) -> None:
    pretrain = write_pretrain(tmp_path / "here" / "my-encoder")
    near = write_probe(tmp_path / "here" / "near", pretrain)
    moved = write_finetune(tmp_path / "here" / "moved", Path("/elsewhere/my-encoder"))
    foreign = write_finetune(tmp_path / "here" / "foreign", Path("/elsewhere/another"))
    runs = gather_runs([pretrain, near, moved, foreign]).runs
    parents = {run.name: run.parent_names for run in runs}
    assert parents == {"my-encoder": (), "near": ("my-encoder",), "moved": ("my-encoder",), "foreign": ()}
    assert levels(runs) == {"my-encoder": 0, "near": 1, "moved": 1, "foreign": 1}


def test_a_circle_of_parents_does_not_hang(tmp_path: Path) -> None:
    write_probe(tmp_path / "one", tmp_path / "two")
    write_probe(tmp_path / "two", tmp_path / "one")
    assert names([tmp_path]) == ["one", "two"]


def test_after_a_resume_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "result.json", result("pretrain"))
    rows = [(10, 3.0), (20, 2.0), (30, 9.0), (20, 2.5), (30, 1.0), (25, 1.5), (40, float("nan"))]
    lines = [json.dumps({"step": step, "kind": "train", "loss": loss, "note": "x"}) for step, loss in rows]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (run,) = gather_runs([tmp_path / "run"]).runs
    assert run.extras.train_curves == {"loss": ((10, 3.0), (20, 2.5), (25, 1.5), (30, 1.0))}


def test_budgets_keep_counts_and_shares_apart(tmp_path: Path) -> None:
    metrics = [{"name": "accuracy", "value": 0.5, "labels_per_class": budget} for budget in (10, 0.1, None)]
    write_json(tmp_path / "run" / "result.json", result("probe", metrics=metrics))
    (run,) = gather_runs([tmp_path / "run"]).runs
    budgets = [metric.labels_per_class for metric in run.result.metrics]
    assert budgets == [10, 0.1, None]
    assert [type(budget) for budget in budgets] == [int, float, type(None)]


def test_what_cannot_be_reported_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run folder was given"):
        gather_runs([])
    with pytest.raises(UserError, match=r"No such run folder: .*absent"):
        gather_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"No run in .*result\.json"):
        gather_runs([tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 1, "stage"', "cannot be read as JSON"),
        ("[1, 2]", "is not a result of a stage"),
        (json.dumps(result("probe", schema_version=2)), "schema_version 2; this version of ssl_ft reads up to 1"),
        (json.dumps(result("probe", metrics=[{"name": "accuracy"}])), r"metrics\.0\.value: Field required"),
        ("\ufffd\x00", "cannot be read as JSON"),
    ],
)
def test_a_broken_or_newer_result_is_refused_by_its_path(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"run/result\.json.*{message}"):
        gather_runs([tmp_path])
