"""Doubts in closed form, and the suggestion at its limits: the same doubt everywhere, doubt alone."""

import math

import numpy as np
import pytest
import torch

from ssl_ft.labelling.choose import choose
from ssl_ft.labelling.doubt import entropy_doubt, margin_doubt
from tests.labelling.test_coverage import points_of

SHARES = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.2, 0.7, 0.1]])


def test_doubts_in_closed_form():
    np.testing.assert_allclose(margin_doubt(SHARES), [0, 1, 1, 0.5], atol=1e-12)
    last = -(0.2 * math.log(0.2) + 0.7 * math.log(0.7) + 0.1 * math.log(0.1)) / math.log(3)
    np.testing.assert_allclose(entropy_doubt(SHARES), [0, math.log(2) / math.log(3), 1, last], atol=1e-12)
    assert margin_doubt(SHARES[:0]).shape == (0,)


@pytest.mark.parametrize("coverage", ["typical", "kcenter"])
def test_doubts_play_a_part_where_they_are_asked_for(coverage):
    points, doubts = points_of(0, 40), torch.rand(40, generator=torch.Generator().manual_seed(0))
    alone = choose(points, 8, by="coverage", coverage=coverage, seed=3)
    assert torch.equal(choose(points, 8, by="coverage", coverage=coverage, seed=3, doubts=doubts), alone)
    both = choose(points, 8, by="both", coverage=coverage, seed=3, doubts=doubts)
    assert not torch.equal(both, alone)
    assert torch.equal(both, choose(points, 8, by="both", coverage=coverage, seed=3, doubts=doubts))
    # Twice the doubt everywhere is no other doubt.
    assert torch.equal(both, choose(points, 8, by="both", coverage=coverage, seed=3, doubts=doubts / 2))


@pytest.mark.parametrize("coverage", ["typical", "kcenter"])
def test_the_same_doubt_everywhere_is_coverage_alone(coverage):
    points, known, same = points_of(0, 40), points_of(9, 8), torch.full((40,), 0.5)
    alone = choose(points, 8, by="coverage", coverage=coverage, seed=3, labelled=known)
    both = choose(points, 8, by="both", coverage=coverage, seed=3, labelled=known, doubts=same)
    assert torch.equal(both, alone)


def test_doubt_alone_takes_the_least_sure_first_and_lower_numbers_on_a_tie():
    doubts = torch.tensor([0.1, 0.9, 0.4, 0.9, 0.0])
    found = choose(points_of(0, 5), 4, by="uncertainty", coverage="typical", seed=0, doubts=doubts)
    assert found.tolist() == [1, 3, 2, 0]


def test_clusters_follow_the_seed():
    points = points_of(1, 200)
    found = [choose(points, 10, by="coverage", coverage="typical", seed=seed).tolist() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
