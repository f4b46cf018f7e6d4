"""The page on self-training, adaptation and shifts: sentences with the paired interval, a damaged file left out."""

import json
from pathlib import Path

import pytest

from ssl_ft.report import words
from ssl_ft.report.page import write_report
from ssl_ft.report.runs import gather_runs
from tests.report.fake_runs import metric, result, write_json

SHIFT = {
    "level": 0.05,
    "is_shifted": True,
    "effect": 0.31,
    "grade": "clear",
    "advice": "Do not stop at a linear probe",
    "accounts": ["target: 40 of 40 images looked at meet what the encoder takes"],
    "tests": [{"space": "encoder", "name": "mmd", "value": 0.1, "null": 0.0, "p_value": 0.001, "p_holm": 0.009}],
    "differences": [
        {"name": "brightness", "pool": 0.4, "target": 0.6, "difference": 0.2, "low": 0.15, "high": 0.25, "spread": 0.1}
    ],
}


def write_pair(folder: Path, *, stage: str, names: tuple[str, str], gain: tuple[float, float, float]) -> Path:
    subject, baseline = names
    difference = metric("accuracy_difference", gain[0], model=f"{subject} over {baseline}", labels=10)
    metrics = [
        metric("accuracy", 0.5 + gain[0], model=subject, labels=10),
        metric("accuracy", 0.5, model=baseline, labels=10),
        difference | {"low": gain[1], "high": gain[2]},
    ]
    write_json(folder / "result.json", result(stage, metrics=metrics))
    return folder


def finding(folder: Path) -> str:
    (run,) = gather_runs([folder]).runs
    return words.finding(run).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.04, 0.01, 0.07), "that is +4.0 points (95 % interval +1.0 point to +7.0 points): a gain."),
        ((0.04, -0.01, 0.09), "no difference is shown."),
        ((-0.04, -0.07, -0.01), "a loss."),
        ((0.0, 0.0, 0.0), "Nothing was better on val than the baseline, which was kept."),
    ],
)
def test_the_paired_interval_decides(tmp_path, gain, said):
    sentence = finding(write_pair(tmp_path / "s", stage="selftrain", names=("student", "teacher"), gain=gain))
    assert "the student reaches" in sentence
    assert "its first teacher 50.0 %" in sentence
    assert said in sentence


def test_an_adaptation_is_held_against_the_source_alone(tmp_path):
    names = ("batch_norm", "source alone")
    folder = write_pair(tmp_path / "a", stage="adapt", names=names, gain=(0.1, 0.05, 0.15))
    assert "the same training on the source alone 50.0 %" in finding(folder)
    page = write_report([folder], tmp_path / "page.html", title="T").read_text("utf-8")
    assert "adapted to unlabelled images of another kind" in page


def test_a_distilled_student_is_held_against_itself_alone(tmp_path):
    names = ("student", "student alone")
    sentence = finding(write_pair(tmp_path / "c", stage="compress", names=names, gain=(0.02, 0.01, 0.03)))
    assert "the student reaches" in sentence
    assert "the same student trained without a teacher 50.0 %" in sentence
    assert "a gain." in sentence


def test_a_shift_has_its_section(tmp_path):
    write_json(tmp_path / "s" / "result.json", result("shift"))
    write_json(tmp_path / "s" / "shift.json", SHIFT)
    page = write_report([tmp_path / "s"], tmp_path / "page.html", title="T").read_text("utf-8")
    for said in (
        'id="shift"',
        "the shift is clear",
        "Do not stop at a linear probe",
        "squared MMD",
        "0.2 (0.15 to 0.25)",
    ):
        assert said in page
    assert "no label was looked at" in page


def test_none_is_said_with_its_false_alarm_rate(tmp_path):
    write_json(tmp_path / "s" / "result.json", result("shift"))
    write_json(tmp_path / "s" / "shift.json", SHIFT | {"is_shifted": False, "grade": "none"})
    assert "No shift is shown at a false-alarm rate of 5.0 %" in finding(tmp_path / "s")


@pytest.mark.parametrize("content", ["{", json.dumps(SHIFT | {"effect": "large"})])
def test_a_damaged_file_is_named_and_left_out(tmp_path, content):
    write_json(tmp_path / "s" / "result.json", result("shift"))
    (tmp_path / "s" / "shift.json").write_text(content)
    page = write_report([tmp_path / "s"], tmp_path / "page.html", title="T").read_text("utf-8")
    assert "shift.json could not be read" in page
    assert 'id="shift"' not in page
