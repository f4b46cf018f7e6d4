"""Ranges, their values on a grid and in words; rungs; and how much training a search took."""

import math

import pytest
from pydantic import ValidationError

from ssl_ft.config.tune import RangeSettings
from ssl_ft.errors import UserError
from ssl_ft.tuning.effort import Effort, best_value, effort, main, median_share, steps_until
from ssl_ft.tuning.ladder import Ladder, default_first
from ssl_ft.tuning.records import RangeRecord, StudyRecord, TrialRecord, read_records, write_records
from ssl_ft.tuning.space import Dimension, grid_values, num_points, restored
from tests.tuning.studies import GRID


def test_values_of_a_range():
    assert Dimension("a", "float", 0.1, 0.4, step=0.1).values() == (0.1, 0.2, 0.3, 0.4)
    assert Dimension("a", "int", 2, 8, step=3).values() == (2, 5, 8)
    assert Dimension("a", "int", 1, 3).values() == (1, 2, 3)
    betas = Dimension("b", "categorical", choices=([0.9, 0.95], [0.9, 0.999], None))
    assert betas.ends() == betas.values() == betas.choices
    assert num_points([betas, Dimension("a", "int", 1, 3)]) == 9
    assert grid_values([betas]) == {"b": ["[0.9, 0.95]", "[0.9, 0.999]", None]}
    assert restored({"b": "[0.9, 0.95]"}, [betas, Dimension("a", "int", 1, 3)]) == {"b": [0.9, 0.95]}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (Dimension("a", "float", 1e-4, 1, is_log=True), "0.0001 to 1, logarithmic"),
        (Dimension("a", "int", 2, 8, step=3), "2 to 8 in steps of 3"),
        (Dimension("a", "categorical", choices=("sgd", None, True, 0.5)), "sgd, none, true, 0.5"),
    ],
)
def test_a_range_in_words(own, words):
    assert own.words() == words


def test_rungs_stand_below_the_end():
    assert Ladder(1, 3, 27).rungs() == (1, 3, 9)
    assert Ladder(12, 3, 300).rungs() == (12, 36, 108)
    assert Ladder(12, 3, 300).top == 324
    assert Ladder(10, 2, 11).rungs() == (10,)
    assert Ladder(7, 3, 200).rungs() == (7, 21, 63), "189 would save 11 steps and be a bracket more"
    assert Ladder(7, 3, 200).top == 189
    assert default_first(300, reduction=3, interval=5, warmup=0) == 10
    assert default_first(300, reduction=3, interval=50, warmup=0) == 50
    assert default_first(5, reduction=3, interval=1, warmup=0) == 1


def test_no_rung_stands_in_the_warm_up():
    assert default_first(300, reduction=3, interval=5, warmup=3) == 10
    assert default_first(300, reduction=3, interval=5, warmup=30) == 60
    assert default_first(300, reduction=3, interval=5, warmup=200) == 100


def test_points_are_counted_without_making_them():
    huge = Dimension("a", "int", 1, 10**9)
    assert num_points([huge, Dimension("b", "float", 0.0, 1.0, step=1e-9)]) == 10**9 * (10**9 + 1)
    for each in (Dimension("a", "int", 1, 10, step=3), Dimension("b", "float", 0.1, 0.7, step=0.2), *GRID):
        assert each.count() == len(each.values())


@pytest.mark.parametrize("end", ["low", "high", "step"])
def test_ranges_end_somewhere(end):
    with pytest.raises(ValidationError, match="finite number"):
        RangeSettings.model_validate({"type": "float", "low": 0.1, "high": 0.2, end: float("inf")})


def trial(number: int, steps: int, value: float | None, *, place: int | None = None) -> TrialRecord:
    state = "complete" if value is not None else "pruned"
    return TrialRecord(
        number=number, place=number if place is None else place, state=state, value=value, steps=steps, seconds=1.0,
        settings={"a": number}, reports=((steps, 0.99),),
    )  # fmt: skip


def study(*trials: TrialRecord, score: str = "val_accuracy") -> StudyRecord:
    space = (RangeRecord(name="a", words="0 to 9", is_log=False, ends=(0, 9), choices=()),)
    return StudyRecord(
        stage="finetune", score=score, sampler="random", pruner="none", rungs=(), most_steps=10, space=space,
        trials=trials, best=0, importances={},
    )  # fmt: skip


def test_steps_until_a_score_count_every_trial_that_had_ended():
    mark = study(trial(0, 10, 0.5), trial(1, 10, 0.7), trial(2, 10, 0.7), trial(3, 10, 0.6))
    assert best_value(mark) == 0.7
    assert steps_until(mark, 0.7) == 20
    # A pruned trial had reported 0.99, and does not count as having reached it.
    other = study(trial(0, 1, None), trial(1, 3, None), trial(2, 10, 0.7, place=3), trial(3, 2, None, place=2))
    assert steps_until(other, 0.7) == 16
    found = effort(mark, other)
    assert found == Effort(0.7, 40, 20, 16)
    assert found.share == 0.4
    never = effort(mark, study(trial(0, 10, 0.6)))
    assert (never.until, never.share) == (None, math.inf)
    assert median_share([found, never, Effort(0.7, 40, 20, 8)]) == 0.4


def test_studies_that_differ_are_not_compared(tmp_path):
    mark = study(trial(0, 10, 0.5))
    with pytest.raises(UserError, match="as they differ in score"):
        effort(mark, study(trial(0, 10, 0.5), score="val_map"))
    for other, words in (
        ({"subject": "x"}, "data, encoder or other settings"),
        ({"most_steps": 9}, "steps of a trial"),
    ):
        with pytest.raises(UserError, match=f"as they differ in {words}"):
            effort(mark, mark.model_copy(update=other))
    with pytest.raises(UserError, match="completed no trial"):
        best_value(study(trial(0, 1, None)))
    with pytest.raises(UserError, match="holds no finished study"):
        read_records(tmp_path)


def test_effort_of_run_folders(tmp_path, capsys):
    for name, steps in (("mark", 10), ("other", 3)):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name, study(trial(0, steps, 0.5), trial(1, steps, 0.7)))
    assert read_records(tmp_path / "mark").num_steps == 20
    assert main([str(tmp_path / "mark"), str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert "after 6 steps, 0.30 of 20" in out
    assert "median share over 1: 0.30" in out
    assert main(["one"]) == 2
    (tmp_path / "other" / "tuning.json").write_text("{}")
    assert main([str(tmp_path / "mark"), str(tmp_path / "other")]) == 2
    assert "tuning.json is damaged" in capsys.readouterr().err
    assert main([str(tmp_path / "mark"), str(tmp_path)]) == 2
    assert "holds no finished study" in capsys.readouterr().err
