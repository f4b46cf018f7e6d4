"""The loss row: both sides compute one number, and rows carry the right sizes and bars."""

from types import SimpleNamespace

import pytest
import torch

from ssl_ft.bench import contrast, peers
from ssl_ft.bench.memory import Cost
from ssl_ft.bench.timing import CannotMeasure


def test_both_sides_compute_the_same_loss():
    torch.testing.assert_close(contrast.prepare_ours(24)(), contrast.prepare_peer(24)(), rtol=1e-6, atol=0)


def test_rows(monkeypatch):
    asked = []

    def cost(prepare, size, *, warm_up_size, num_threads):
        asked.append((prepare.__name__, size))
        return Cost(5.0 if prepare is contrast.prepare_ours else 100.0, 2.0)

    monkeypatch.setattr(contrast, "cost_in_own_process", cost)
    small, larger, memory, alone = contrast.measure(rounds=1, sizes=(1024, 1100), large=32)
    assert asked == [("prepare_ours", 1100), ("prepare_peer", 1100), ("prepare_ours", 32)]
    assert "N=1024" in small.name
    assert small.unit == "ms"
    assert (small.bar.value, small.bar.figure) == (2.0, "ratio")
    assert small.low <= small.ratio <= small.high
    assert larger.bar is None
    assert (memory.ours, memory.peer, memory.ratio, memory.is_met) == (5.0, 100.0, 0.05, True)
    assert (alone.ours, alone.peer, alone.is_met) == (5.0, None, True)


def test_without_lightly(monkeypatch):
    hidden = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(peers, "importlib", hidden)
    with pytest.raises(CannotMeasure, match="pip install"):
        contrast.prepare_peer(8)
