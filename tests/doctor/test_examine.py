"""Going through the checks: every name is known everywhere, an error is a finding, ranks are heard."""

import sys
from pathlib import Path
from typing import get_args

import pytest

from ssl_ft import config
from ssl_ft.doctor import examine, machine
from ssl_ft.doctor.finding import Finding
from ssl_ft.errors import UserError

ABOUT = examine.Circumstances(device="cpu", num_ranks=1, memory_mb=1, folder=Path("."))


def test_settings_name_the_checks_that_are_there():
    assert get_args(config.Check) == tuple(examine.CHECKS)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (UserError("so it is"), "so it is"),
    ],
)
def test_a_check_that_breaks_off_is_a_failure_with_advice(monkeypatch, error, told):
    def break_off(**unused: object) -> Finding:
        raise error

    monkeypatch.setattr(machine, "check_cpu", break_off)
    done: list[int] = []
    found = examine.examine(["cpu", "memory"], ABOUT, on_done=lambda: done.append(1))
    assert [(finding.name, finding.verdict) for finding in found] == [("cpu", "fail"), ("memory", "pass")]
    assert found[0].measured == told
    assert found[0].advice
    assert len(done) == 2


def test_torch_that_cannot_be_imported_is_told(monkeypatch):
    assert examine.torch_problem() is None
    monkeypatch.setitem(sys.modules, "torchvision", None)
    finding = examine.torch_problem()
    assert finding is not None
    assert finding.verdict == "fail"
    assert "pip install" in finding.advice


def test_one_ranks_failure_is_everybodys():
    well, ill = Finding("disk", "pass", "fine"), Finding("disk", "fail", "full", "free some space")
    assert examine._worst([well, well]) == well
    assert examine._worst([well, ill]) == Finding("disk", "fail", "rank 1: full", "free some space")


def test_other_versions_on_a_rank_are_a_failure():
    first, second = Finding("versions", "pass", "torch 2.14"), Finding("versions", "pass", "torch 2.15")
    finding = examine._worst([first, second])
    assert finding.verdict == "fail"
    assert "rank 1 has torch 2.15" in finding.measured
