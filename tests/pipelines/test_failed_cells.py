"""Stage compare where a cell diverges: the others go on, the strategy is left out, and a lost baseline is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_ft.build import cells
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import CellKey
from tests.pipelines.conftest import run_command

Diverge = Callable[..., None]
SENTENCE = "the loss or its gradient stopped being finite; lower optim.rate"


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch) -> Diverge:
    """Makes trainings of some strategies diverge in draw 1, and counts them."""
    train = cells.train_classifier

    def begin(*strategies: str, tried: list[str]) -> None:
        def spoiled(settings: Any, *args: Any, **more: Any) -> Any:
            tried.append(settings.strategy)
            if settings.strategy in strategies and settings.draw == 1:
                raise UserError(SENTENCE)
            return train(settings, *args, **more)

        monkeypatch.setattr(cells, "train_classifier", spoiled)

    return begin


def words(tiny_runs: Path, out: Path, *strategies: str) -> list[str]:
    return [
        "compare", f"encoders={tiny_runs / 'pretrain'}", "labels=2", "draws=2", "device=cpu", "workers=1",
        "finetune.min_steps=2", "finetune.epochs=1", "resamples=200", f"strategies=[{','.join(strategies)}]",
        f"out={out}",
    ]  # fmt: skip


def test_a_cell_that_diverges_leaves_its_strategy_out_and_the_others_go_on(tiny_runs, tmp_path, diverge):
    tried: list[str] = []
    diverge("full", tried=tried)
    command = words(tiny_runs, tmp_path / "run", "scratch", "probe", "full")
    outcome = run_command(command)
    assert outcome.code == 0, outcome.err
    cell = CellKey("pretrain", "full", 2, 1, 0).name
    said = f"full is left out for pretrain: cell {cell} failed: {SENTENCE}"
    assert said in outcome.err
    assert said in (tmp_path / "run" / "manifest.json").read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {row["model"] for row in result["metrics"] if row["name"] == "accuracy"} == {"scratch", "probe"}
    (left,) = json.loads((tmp_path / "run" / "comparison.json").read_text())["left_out"]
    assert (left["encoder"], left["strategy"]) == ("pretrain", "full")
    assert left["reason"].startswith(f"cell {cell} failed: {SENTENCE} (here")
    assert run_command(["report", str(tmp_path / "run"), f"out={tmp_path / 'page.html'}"]).code == 0
    assert f"Left out: full for pretrain: cell {cell} failed" in (tmp_path / "page.html").read_text()
    # It is over: nobody tries it again, and the plan counts it.
    (tmp_path / "run" / "result.json").unlink()
    before = len(tried)
    outcome = run_command([*command, "--dry-run"])
    assert "6 are done, 1 of them failed" in outcome.out
    assert f"failed: cell {cell}: {SENTENCE}" in outcome.out
    assert run_command(command).code == 0
    assert len(tried) == before
    assert run_command(["advise", f"compare={tmp_path / 'run'}", f"out={tmp_path / 'advice'}"]).code == 0


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            ["scratch"],
            r"the baseline scratch failed.*Cell pretrain--scratch--2--draw1--seed0: ",
        ),
        (
            ["full", "l2sp"],
            r"every strategy beside the baseline scratch failed.*Cell pretrain--full--2--draw1--seed0: ",
        ),
    ],
)
def test_a_lost_baseline_or_nothing_left_to_compare_ends_with_the_cell_and_what_to_change(
    tiny_runs, tmp_path, diverge, lost, message
):
    diverge(*lost, tried=[])
    command = words(tiny_runs, tmp_path / "run", "scratch", "full", "l2sp")
    outcomes = [run_command(command), run_command(command)]  # two processes, or one that is started again, say the same
    assert [outcome.code for outcome in outcomes] == [2, 2]
    for outcome in outcomes:
        with pytest.raises(UserError, match=message):
            raise UserError(outcome.err)
        assert "finetune.optim.rate" in outcome.err
        assert ".failed.json and start the same command again" in outcome.err
    assert len(list((tmp_path / "run" / "cells").glob("*"))) == 6
    assert not (tmp_path / "run" / "result.json").exists()
