"""The check of bf16: near float32 here, and a loss that suffers under it fails."""

from pathlib import Path

import torch

from ssl_ft.doctor import subject
from ssl_ft.doctor.examine import Circumstances, examine
from ssl_ft.doctor.precision import check_precision
from ssl_ft.objectives.nt_xent import nt_xent

CPU = torch.device("cpu")


def test_passes_here():
    finding = check_precision(CPU)
    assert finding.verdict == "pass", finding
    assert "simclr" in finding.measured
    assert "masked" in finding.measured


def test_a_loss_that_is_coarse_under_autocast_fails(monkeypatch):
    def coarse(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return nt_xent(first, second, temperature=temperature)
        return nt_xent(first + first.detach().round() * 3, second, temperature=temperature)

    monkeypatch.setattr(subject, "nt_xent", coarse)
    finding = check_precision(CPU)
    assert finding.verdict == "fail"
    assert "precision=float32" in finding.advice


def test_a_loss_that_is_no_number_fails(monkeypatch):
    def broken(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
        factor = torch.nan if torch.is_autocast_enabled("cpu") else 1.0
        return nt_xent(first, second, temperature=temperature) * factor

    monkeypatch.setattr(subject, "nt_xent", broken)
    about = Circumstances(device="cpu", num_ranks=1, memory_mb=1, folder=Path("."))
    (finding,) = examine(["precision"], about, on_done=lambda: None)
    assert finding.verdict == "fail"
    assert "finite" in finding.measured
    assert "precision=float32" in finding.advice
