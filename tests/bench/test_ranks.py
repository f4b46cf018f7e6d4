"""The row ranks: what counts as a difference, and that a way with other numbers is told apart."""

import pytest
import torch

from ssl_ft.bench import ranks
from ssl_ft.bench.timing import CannotMeasure


def test_the_largest_difference_is_of_losses_relative_and_of_weights_absolute():
    one = {"losses": torch.tensor([2.0, 4.0]), "weights": torch.tensor([1.0, -1.0])}
    other = {"losses": torch.tensor([2.0, 4.4]), "weights": torch.tensor([1.05, -1.0])}
    assert ranks.largest_difference(other, one) == pytest.approx(0.1)
    assert ranks.largest_difference(one | {"weights": torch.tensor([1.0, -1.5])}, one) == pytest.approx(0.5)
    assert ranks.largest_difference(one, one) == 0.0


def test_rows(monkeypatch):
    """Cached gradients are made to differ: their rows miss the bar, and no other does."""

    def steps_of(way, *, num_ranks):
        return {"losses": torch.ones(2), "weights": torch.full((3,), 1.0 + (way.num_parts > 1))}

    monkeypatch.setattr(ranks, "steps_of", steps_of)
    rows = list(ranks.measure())
    assert len(rows) == 6
    assert {row.name.startswith("cached") for row in rows if not row.is_met} == {True}
    assert sum(row.is_met is False for row in rows) == 2


def test_ranks_that_fail_are_told(monkeypatch):
    monkeypatch.setattr(ranks, "run_ranks", lambda stage, way, *, num_ranks: 1)
    with pytest.raises(CannotMeasure, match="2 ranks on this machine ended with exit code 1"):
        ranks.steps_of(ranks.Way("", "float32"), num_ranks=2)


@pytest.mark.slow
@pytest.mark.dist
def test_every_way_gives_the_same_numbers():
    assert all(row.is_met for row in ranks.measure())
