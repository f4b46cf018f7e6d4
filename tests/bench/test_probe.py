"""The probe's row: both sides solve the same problems, and the rows tell how far they lie apart. Nothing is timed."""

import numpy as np
import pytest

from ssl_ft.bench import probe
from ssl_ft.bench.probe import Comparison, Outcome, make_task, probe_rows


def test_both_sides_choose_alike_and_score_alike():
    found = probe_rows(num_images=1500, num_features=24, num_classes=5, num_strengths=4, draws=2, seed=0)
    assert [len(side) for side in (found.our_seconds, found.peer_seconds, found.ours, found.peer)] == [2] * 4
    assert found.strength_steps == 0
    assert found.accuracy_points < 0.3
    # Neither chance nor all: or agreement would show nothing.
    assert all(0.5 < one.accuracy < 0.95 for one in found.ours)


def test_no_side_learns_from_test_rows_or_holds_out_what_it_fits():
    task = make_task(200, 6, num_classes=3, num_strengths=3, draws=3, seed=1)
    assert task.strengths == pytest.approx([100.0, 0.1, 1e-4])
    for train, val in task.draws:
        assert (len(train), len(val)) == (160, 40)
        assert np.array_equal(np.sort(np.r_[train, val]), np.arange(200))
    assert task.test == slice(200, None)
    assert not np.array_equal(task.draws[0][0], task.draws[1][0])
    spoiled = make_task(200, 6, num_classes=3, num_strengths=3, draws=3, seed=1)
    spoiled.labels[task.test] = 0
    for side in (probe.ours, lambda some: [probe.peer(some, draw) for draw in range(3)]):
        assert [one.strength for one in side(task)] == [one.strength for one in side(spoiled)]


def test_rows(monkeypatch):
    ours, peer = [Outcome(1.0, 0.8), Outcome(0.1, 0.7)], [Outcome(1.0, 0.7), Outcome(10.0, 0.796)]
    comparison = Comparison([1.0, 2.0], [20.0, 40.0], ours, peer, [10.0, 1.0, 0.1])
    monkeypatch.setattr(probe, "probe_rows", lambda **_: comparison)
    time, accuracy, strength = probe.measure(rounds=2)
    assert (time.ratio, time.is_met, time.unit) == (20.0, True, "s")
    assert accuracy.ours == pytest.approx(0.2)
    assert accuracy.is_met is False
    assert (strength.ours, strength.is_met) == (2, False)
