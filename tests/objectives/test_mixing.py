"""Mixup and cutmix: what is mixed with what and by how much, against a slow version; draws, ranks, missing targets."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ssl_ft import dist
from ssl_ft.objectives.mixing import Mixing, beta_draws, mix, mixing_partners
from tests.ranks import run_on_ranks

SIDE = 16


def views_of(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_hot(count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_partners_make_one_round_through_all_that_depends_on_the_images_alone(seed: int) -> None:
    indices = torch.tensor([5, 900, 3, 77, 12, 41, 8])
    partners = mixing_partners(indices, seed=seed, epoch=2)
    place, seen = 0, []
    for _ in indices:
        seen.append(place)
        place = int(partners[place])
    assert sorted(seen) == list(range(7))
    assert place == 0
    shuffled = torch.tensor([2, 0, 6, 5, 1, 4, 3])
    partner_of = dict(zip(indices.tolist(), indices[partners].tolist(), strict=True))
    again = mixing_partners(indices[shuffled], seed=seed, epoch=2)
    assert dict(zip(indices[shuffled].tolist(), indices[shuffled][again].tolist(), strict=True)) == partner_of
    assert mixing_partners(torch.tensor([4]), seed=seed, epoch=0).tolist() == [0]
    others = [tuple(mixing_partners(indices, seed=seed, epoch=epoch).tolist()) for epoch in range(8)]
    assert len(set(others)) > 4


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 8.0])
def test_draws_are_beta_distributed(alpha: float) -> None:
    draws = beta_draws(torch.arange(20000), alpha=alpha, seed=1, purpose="test", epoch=0).numpy()
    assert draws.min() >= 0
    assert draws.max() <= 1
    # Away from the ends, which float32 rounds to 0 and 1; 20000 draws have a standard error below 0.0036.
    for place in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert np.mean(draws <= place) == pytest.approx(stats.beta.cdf(place, alpha, alpha), abs=0.012)
    again = beta_draws(torch.arange(20000), alpha=alpha, seed=1, purpose="test", epoch=1).numpy()
    assert abs(np.corrcoef(draws, again)[0, 1]) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_mixup_blends_views_and_targets_by_the_same_share(seed: int) -> None:
    views, targets, indices = views_of(6), one_hot(6), torch.arange(6) * 3
    mixed, shares = mix(views, targets, indices, mixing=Mixing(0.4, 0.0, seed), epoch=1)
    for row in range(6):
        (partner,) = [k for k in range(6) if k != row and shares[row, k] > 0]
        own = float(shares[row, row])
        assert own + float(shares[row, partner]) == pytest.approx(1)
        torch.testing.assert_close(mixed[row], own * views[row] + (1 - own) * views[partner], rtol=0, atol=1e-7)
    assert len({round(float(shares[row, row]), 6) for row in range(6)}) == 6  # each image its own share


@pytest.mark.parametrize("seed", range(3))
def test_cutmix_pastes_a_rectangle_and_counts_its_area(seed: int) -> None:
    views, targets, indices = views_of(20), one_hot(20), torch.arange(20)
    mixed, shares = mix(views, targets, indices, mixing=Mixing(0.0, 1.0, seed), epoch=0)
    areas = []
    for row in range(20):
        changed = [[bool((mixed[row, :, y, x] != views[row, :, y, x]).any()) for x in range(SIDE)] for y in range(SIDE)]
        pixels = [(y, x) for y in range(SIDE) for x in range(SIDE) if changed[y][x]]
        area = len(pixels) / SIDE**2
        areas.append(area)
        assert float(shares[row, row]) == pytest.approx(1 - area, abs=1e-12)
        if not pixels:
            continue
        ys, xs = {y for y, _ in pixels}, {x for _, x in pixels}
        assert len(pixels) == len(ys) * len(xs) == (max(ys) - min(ys) + 1) * (max(xs) - min(xs) + 1)
        (partner,) = [k for k in range(20) if k != row and shares[row, k] > 0]
        for y, x in pixels:
            assert torch.equal(mixed[row, :, y, x], views[partner, :, y, x])
    assert 0.05 < np.mean(areas) < 0.6


def test_rectangles_are_those_of_the_paper() -> None:
    """Side √(1 − λ) about a uniform centre, cut off at the border: over many images their mean area says so."""
    indices = torch.arange(4000)
    targets = torch.zeros(4000, 1, dtype=torch.float64)
    targets[::2] = 1
    views = torch.zeros(4000, 1, SIDE, SIDE)
    mixed, _ = mix(views + indices.view(-1, 1, 1, 1), targets, indices, mixing=Mixing(0.0, 1.0, 0), epoch=0)
    areas = (mixed[:, 0] != indices.view(-1, 1, 1)).double().mean((1, 2)).numpy()
    generator = np.random.default_rng(0)
    expected = []
    for _ in range(4000):
        size = math.floor(SIDE * math.sqrt(1 - generator.random()))
        sides = []
        for _ in range(2):
            first = generator.integers(SIDE) - size // 2
            sides.append(min(SIDE, first + size) - max(0, first))
        expected.append(max(0, sides[0]) * max(0, sides[1]) / SIDE**2)
    assert areas.mean() == pytest.approx(np.mean(expected), abs=0.015)
    assert areas.std() == pytest.approx(np.std(expected), abs=0.015)


def test_with_both_each_image_takes_one() -> None:
    indices = torch.arange(400)
    views = torch.arange(400.0).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    mixed, _ = mix(views, torch.zeros(400, 1), indices, mixing=Mixing(1.0, 1.0, 0), epoch=0)
    num_values = [len(mixed[row].unique()) for row in range(400)]
    assert 150 < sum(count == 2 for count in num_values) < 250  # a pasted rectangle; a blend is flat


def test_nothing_is_mixed_where_both_are_off() -> None:
    views, targets = views_of(3), one_hot(3)
    mixed = mix(views, targets, torch.arange(3), mixing=Mixing(0.0, 0.0, 0), epoch=0)
    assert mixed[0] is views
    assert mixed[1] is targets


def test_a_target_missing_in_either_is_missing_in_the_mixture() -> None:
    targets = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    mixed = mix(views_of(2).float(), targets, torch.arange(2), mixing=Mixing(1.0, 0.0, 0), epoch=0)[1]
    assert mixed.isnan().tolist() == [[False, True], [False, True]]
    views = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)  # so small that most rectangles are empty
    holes = torch.full((40, 1), torch.nan)
    holes[::2] = 1
    cut = mix(views, holes, torch.arange(40), mixing=Mixing(0.0, 8.0, 0), epoch=0)
    is_alone = (cut[0] == views).all(3).all(2)[:, 0]
    assert 0 < is_alone.sum() < 40
    assert torch.equal(cut[1][is_alone].nan_to_num(-1), holes[is_alone].nan_to_num(-1))


def test_the_same_images_are_mixed_alike_wherever_they_lie_in_the_batch() -> None:
    views, targets, indices = views_of(5), one_hot(5), torch.tensor([9, 4, 30, 2, 17])
    order = torch.tensor([3, 1, 4, 0, 2])
    mixing = Mixing(0.3, 0.7, 5)
    first = mix(views, targets, indices, mixing=mixing, epoch=3)
    second = mix(views[order], targets[order], indices[order], mixing=mixing, epoch=3)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[order], other)


def mixed_on_this_rank() -> tuple[np.ndarray, np.ndarray]:
    views, targets, indices = views_of(6), one_hot(6), torch.tensor([9, 4, 30, 2, 17, 8])
    share = 6 // dist.world_size()
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)
    mixed = mix(views[own], targets[own], indices[own], mixing=Mixing(0.3, 0.7, 5), epoch=3)
    return mixed[0].numpy(), mixed[1].numpy()


@pytest.mark.dist
def test_two_ranks_mix_as_one_process_does() -> None:
    parts = run_on_ranks(mixed_on_this_rank, num_ranks=2)
    for joined, whole in zip(map(np.concatenate, zip(*parts, strict=True)), mixed_on_this_rank(), strict=True):
        np.testing.assert_array_equal(joined, whole)
