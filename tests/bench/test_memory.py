"""Memory of a fresh process: what is held before is not counted, a peak that is gone again is."""

import pytest
import torch

from ssl_ft.bench import memory
from ssl_ft.bench.memory import cost_in_own_process
from ssl_ft.bench.timing import CannotMeasure


def prepare_passing_peak(megabytes: int):
    """Holds 50 MB before the work; the work takes `megabytes` for a moment."""
    held = torch.ones(50 * 250_000)

    def work() -> float:
        passing = torch.ones(megabytes * 250_000)
        return float(passing.sum() + held.sum())

    return work


def test_peak_beyond_what_was_held():
    cost = cost_in_own_process(prepare_passing_peak, 80, warm_up_size=1, num_threads=1)
    assert 75 < cost.extra_mb < 90
    assert 0 < cost.seconds < 60


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with pytest.raises(CannotMeasure, match="peak memory"):
        cost_in_own_process(prepare_passing_peak, 1, warm_up_size=1, num_threads=1)
