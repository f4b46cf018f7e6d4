"""The order row: time of one batch out of many, and a proof that can fail."""

import torch

from ssl_ft.bench import order
from ssl_ft.bench.memory import Cost


def test_rows(monkeypatch):
    monkeypatch.setattr(order, "cost_in_own_process", lambda prepare, size, **rest: Cost(3.0, 0.5))
    time, memory = order.measure(num_batches=1000)
    assert (time.ours, time.unit, time.is_met) == (0.5, "ms", True)
    assert (memory.ours, memory.unit, memory.is_met) == (3.0, "MB", True)


def test_batches_are_looked_up_all_over(monkeypatch):
    steps = []
    monkeypatch.setattr(order, "batch_indices", lambda step, **rest: steps.append((step, rest["num_images"])))
    order.prepare(50)()
    assert len(steps) == 50
    assert max(step for step, _ in steps) > 10**7
    assert {number for _, number in steps} == {10**9}
    order.prepare(50)()
    assert steps[:50] == steps[50:]


def test_the_proof_can_fail(monkeypatch):
    assert order.is_bijection(1000)
    monkeypatch.setattr(order, "permute", lambda places, **rest: places // 2)
    assert not order.is_bijection(1000)
    monkeypatch.setattr(order, "permute", lambda places, **rest: torch.flip(places, [0]))
    assert order.is_bijection(1000)
