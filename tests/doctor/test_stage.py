"""The stage: everything passes here, a fault gives exit code 1 and no traceback, ranks that were started take part."""

import json
from pathlib import Path

import pytest
import torch

from pipelines import doctor
from ssl_ft import dist
from ssl_ft.cli import main
from ssl_ft.config import DoctorSettings
from ssl_ft.doctor.examine import CHECKS
from ssl_ft.launch import run_ranks


def verdicts(path: Path) -> dict[str, str]:
    return {finding["name"]: finding["verdict"] for finding in json.loads(path.read_text())["findings"]}


def check_all(names: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "doctor.json"
    words = [f"out={out}", f"folder={folder}", "data=digits", "memory_mb=100", "device=cpu"]
    assert main(["doctor", *names, *words]) == 0, capsys.readouterr().out
    expected = dict.fromkeys(names or CHECKS, "pass") | {"device": "cannot check"}
    assert verdicts(out) == expected
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"{len(expected) - 1} pass, 0 fail, 1 cannot check", str(out)]
    assert [line.split()[0] for line in lines if line[0] != " "][1:-2] == list(expected)


@pytest.mark.slow
@pytest.mark.dist
def test_all_that_takes_one_start_of_ranks_passes_here(tmp_path, capsys, monkeypatch):
    # On a busy machine, threads on tiny batches mostly wait for each other.
    monkeypatch.setattr(dist, "use_threads", lambda num_threads: torch.set_num_threads(1))
    check_all([name for name in CHECKS if name != "network"], tmp_path, capsys)


@pytest.mark.dist
@pytest.mark.slow
def test_everything_passes_here(tmp_path, capsys):
    check_all([], tmp_path, capsys)


def test_a_fault_gives_exit_code_1_and_a_sentence(capsys):
    assert main(["doctor", "memory", "disk", "folder=/proc/runs", "memory_mb=100"]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert [line.split()[:2] for line in out.splitlines()[1:] if line[0] != " "][:2] == [
        ["memory", "pass"],
        ["disk", "fail"],
    ]


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["disc"], "checks"),
        (["out=."], "is a folder"),
        (["out=nowhere/doctor.json"], "no folder nowhere"),
        (["ranks=0"], "ranks"),
    ],
)
def test_mistakes_are_refused(words, phrase, capsys):
    assert main(["doctor", *words]) == 2
    assert phrase in capsys.readouterr().err


@pytest.mark.dist
@pytest.mark.slow
def test_ranks_that_were_started_are_compared_and_measured(tmp_path, capfd):
    out = tmp_path / "doctor.json"
    settings = DoctorSettings(
        checks=("versions", "disk", "ranks", "network"), folder=str(tmp_path), out=str(out), device="cpu"
    )
    assert run_ranks(doctor.main, settings, num_ranks=2) == 0
    assert verdicts(out) == dict.fromkeys(settings.checks, "pass")
    assert "ranks that were started" in out.read_text()
    assert capfd.readouterr().out.count("verdict") == 1
