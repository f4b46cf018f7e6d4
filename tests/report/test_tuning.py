"""The section on a search for settings: places on axes, who went on from which rung, and what is said of it."""

from pathlib import Path

import pytest

from ssl_ft.report import formats
from ssl_ft.report.page import write_report
from ssl_ft.report.tuning_figures import history_figure, last_value, parallel_figure, passed, place_on, rung_figure
from ssl_ft.report.tuning_section import tuning_sentence, tuning_view
from ssl_ft.tuning.records import RangeRecord, StudyRecord, TrialRecord, write_records
from tests.report.fake_runs import result, write_json

RATE = RangeRecord(name="optim.rate", words="0.001 to 0.1, logarithmic", is_log=True, ends=(1e-3, 0.1), choices=())
DEPTH = RangeRecord(name="partial.layers", words="1 to 5", is_log=False, ends=(1, 5), choices=())
NAME = RangeRecord(name="strategy", words="full, <b>$x", is_log=False, ends=None, choices=("full", "<b>$x"))


def trial(number: int, *reports: tuple[int, float], state: str = "complete", place: int | None = None) -> TrialRecord:
    return TrialRecord.model_validate(
        {
            "number": number, "place": number if place is None else place, "state": state,
            "value": reports[-1][1] if state == "complete" else None, "steps": reports[-1][0], "seconds": 1.0,
            "settings": {"optim.rate": 0.01, "partial.layers": 1 + number, "strategy": NAME.choices[number % 2]},
            "reports": reports,
        }
    )  # fmt: skip


STUDY = StudyRecord(
    stage="finetune", score="val_accuracy", sampler="tpe", pruner="hyperband", rungs=(3, 9), most_steps=27,
    space=(RATE, DEPTH, NAME), best=2, importances={"optim.rate": 0.7, "partial.layers": 0.2, "strategy": 0.1},
    trials=(
        trial(0, (3, 0.2), (9, 0.4), (27, 0.5)),
        trial(1, (4, 0.1), state="pruned", place=3),
        trial(2, (3, 0.3), (9, 0.5), (27, 0.75), place=1),
        trial(3, (3, 0.25), (10, 0.3), state="pruned", place=2),
    ),
)  # fmt: skip


def test_places_on_axes():
    assert [place_on(RATE, value) for value in (1e-3, 0.01, 0.1)] == pytest.approx([0, 0.5, 1])
    assert place_on(DEPTH, 4) == 0.75
    assert [place_on(NAME, value) for value in NAME.choices] == [0, 1]


def test_who_went_on_from_a_rung_and_what_a_trial_is_worth():
    # Judged at the first evaluation after the rung: the second fell at 4 steps, the fourth at 10.
    assert passed(STUDY) == [(3, 3), (9, 2)]
    assert [last_value(each) for each in STUDY.trials] == [0.5, 0.1, 0.75, 0.3]
    assert last_value(TrialRecord(**{**STUDY.trials[1].model_dump(), "reports": ()})) is None


def test_it_is_said_in_words():
    assert tuning_sentence(STUDY).replace(formats.NBSP, " ") == (
        "The best of 4 settings tried reaches 75.0 % val accuracy: optim.rate 0.01, partial.layers 3, strategy full. "
        "Test images were not looked at, and a score that was chosen by is flattered."
    )
    view = tuning_view(STUDY, prefix="t")
    text = " ".join(view.accounts).replace(formats.NBSP, " ")
    assert "2 trials were trained to their end, 2 stopped early, 0 failed. All took 68 training steps." in text
    assert "as many trials could have taken 108 steps." in text
    assert "Trials that Hyperband let go on: 3 after 3 steps, 2 after 9 steps." in text
    assert [row[0] for row in view.rows] == ["2", "0"]
    nobody = STUDY.model_copy(update={"best": None})
    assert tuning_sentence(nobody) == "No trial of 4 was trained to its end."


def test_figures_hold_what_they_are_given():
    history = history_figure(STUDY, prefix="h")
    assert "Scores of 4 trials over 68 training steps; best 75.0\N{NO-BREAK SPACE}%" in history
    rungs = rung_figure(STUDY, prefix="r")
    assert "Trials that went on: 3 after 3 steps, 2 after 9 steps." in rungs
    assert all(f">{mark}<" in rungs for mark in (3, 9, 27))
    parallel = parallel_figure(STUDY, prefix="p")
    assert all(f">{text}<" in parallel for text in ("optim.rate", "strategy", "&lt;b&gt;$x", "0.001", "5"))
    # Without a pruner, and where every score is the same.
    flat = STUDY.model_copy(update={"rungs": (), "trials": STUDY.trials[:1], "best": 0})
    assert ">50.0\N{NO-BREAK SPACE}%<" in parallel_figure(flat, prefix="p")
    assert "dash" not in rung_figure(flat, prefix="r")


def test_the_page_has_the_section_and_says_what_is_missing(tmp_path: Path):
    run = tmp_path / "tune"
    write_json(run / "result.json", result("tune"))
    write_records(run, STUDY.model_copy(update={"importances": {}}))
    page = write_report([run], tmp_path / "page.html", title="t").read_text()
    assert 'id="tuning"' in page
    assert "Too few trials were completed to tell which settings matter." in page
    assert "(fANOVA)" not in page
    assert "<b>$x" not in page, "everything is escaped"
    (run / "tuning.json").write_text("{}")
    page = write_report([run], tmp_path / "page.html", title="t").read_text()
    assert 'id="tuning"' not in page
    assert "tuning.json could not be read" in page
