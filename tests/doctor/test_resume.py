"""The resume check: passes here, fails when a checkpoint forgets something, knows a machine that varies by itself."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_ft.checkpoint import load_checkpoint, save_checkpoint
from ssl_ft.doctor import resume


def test_passes_here():
    finding = resume.check_resume()
    assert finding.verdict == "pass", finding
    assert "bit for bit" in finding.measured


def without_optimizer(path: Path, *, modules: dict[str, nn.Module], optimizer: Any, values: dict[str, Any]) -> None:
    fresh = torch.optim.AdamW(modules["objective"].parameters())
    save_checkpoint(path, modules=modules, optimizer=fresh, values=values)


def with_rounded_weights(path: Path, *, modules: dict[str, nn.Module], optimizer: Any, values: dict[str, Any]) -> None:
    rounded = {name: module.to(torch.bfloat16).to(torch.float32) for name, module in modules.items()}
    save_checkpoint(path, modules=rounded, optimizer=optimizer, values=values)


@pytest.mark.parametrize("save", [without_optimizer, with_rounded_weights])
def test_a_checkpoint_that_drops_something_fails(monkeypatch, save):
    monkeypatch.setattr(resume, "save_checkpoint", save)
    finding = resume.check_resume()
    assert finding.verdict == "fail"
    assert "done twice agree" in finding.measured


def test_going_on_at_another_step_fails(monkeypatch):
    def one_less(path: Path, *, modules: dict[str, nn.Module], optimizer: Any) -> dict[str, Any]:
        return {"step": load_checkpoint(path, modules=modules, optimizer=optimizer)["step"] - 1}

    monkeypatch.setattr(resume, "load_checkpoint", one_less)
    assert resume.check_resume().verdict == "fail"


def test_a_machine_whose_sums_vary_is_told_apart(monkeypatch):
    whole, count = resume.build_objective, itertools.count()

    def varying(*args: Any, **more: Any) -> nn.Module:
        objective = whole(*args, **more)
        with torch.no_grad():
            next(objective.parameters()).mul_(1 + 1e-6 * next(count))
        return objective

    monkeypatch.setattr(resume, "build_objective", varying)
    finding = resume.check_resume()
    assert finding.verdict == "fail"
    assert "and so do those" in finding.measured
