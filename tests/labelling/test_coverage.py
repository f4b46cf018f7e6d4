"""Coverage against slow obvious versions: k-means by loops, the greedy k-center, the typical image of each cluster."""

import itertools
import math

import numpy as np
import pytest
import torch

from ssl_ft.labelling import coverage
from ssl_ft.labelling.clusters import k_means, plus_plus
from ssl_ft.labelling.coverage import k_center, typical, typicality


def points_of(seed: int, count: int, *, dimensions: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, dimensions))).float()


def unit(points: torch.Tensor) -> list[list[float]]:
    rows = points.double().tolist()
    return [[value / math.hypot(*row) for value in row] for row in rows]


@pytest.mark.parametrize("seed", range(10))
def test_k_means_is_lloyds_from_its_starts(seed):
    points = points_of(seed, 40)
    rows, starts = points.double().tolist(), plus_plus(points, 5, seed=seed).tolist()
    centres = [rows[start] for start in starts]
    before: list[int] = []
    while True:
        nearest = [min(range(5), key=lambda c, row=row: math.dist(row, centres[c])) for row in rows]
        if nearest == before:
            break
        before = nearest
        for c in range(5):
            members = [row for row, cluster in zip(rows, nearest, strict=True) if cluster == c]
            centres[c] = (
                [sum(values) / len(members) for values in zip(*members, strict=True)] if members else centres[c]
            )
    assert k_means(points, 5, seed=seed).tolist() == nearest
    assert torch.equal(k_means(points, 5, seed=seed), k_means(points.clone(), 5, seed=seed))


def test_starts_are_drawn_by_squared_distance():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = [tuple(plus_plus(points, 2, seed=seed).tolist()) for seed in range(800)]
    from_first = [second for first, second in pairs if first == 0]
    assert len(from_first) == pytest.approx(800 / 3, abs=50)
    assert from_first.count(2) / len(from_first) == pytest.approx(0.9, abs=0.06)  # 9 : 1
    assert all(first != second for first, second in pairs)


def test_starts_among_copies_are_the_first_free_ones():
    points = torch.ones(4, 2)
    assert sorted(plus_plus(points, 4, seed=1).tolist()) == [0, 1, 2, 3]
    assert k_means(points, 1, seed=0).tolist() == [0] * 4


def greedy(points: list[list[float]], known: list[list[float]], weights: list[float], count: int) -> list[int]:
    chosen: list[int] = []
    if not known:
        centre = [sum(values) / len(points) for values in zip(*points, strict=True)]
        products = [sum(a * b for a, b in zip(point, centre, strict=True)) for point in points]
        chosen.append(products.index(max(products)))
    while len(chosen) < count:
        best, farthest = -1, -1.0
        for number, point in enumerate(points):
            if number in chosen:
                continue
            apart = min(math.dist(point, other) for other in [*known, *(points[c] for c in chosen)])
            if apart * weights[number] > farthest:
                best, farthest = number, apart * weights[number]
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_labelled", [0, 4])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_k_center_is_the_obvious_greedy(seed, num_labelled, is_weighted):
    points, known = points_of(seed, 30), points_of(100 + seed, num_labelled)
    weights = np.random.default_rng(seed).random(30) if is_weighted else np.ones(30)
    found = k_center(
        points, 12, labelled=known if num_labelled else None, weights=torch.from_numpy(weights).float() if is_weighted
        else None,
    )  # fmt: skip
    assert found.tolist() == greedy(unit(points), unit(known), weights.tolist(), 12)


def test_k_center_is_at_most_twice_the_best_radius():
    points = points_of(3, 12)
    rows = unit(points)

    def radius(chosen: tuple[int, ...]) -> float:
        return max(min(math.dist(row, rows[c]) for c in chosen) for row in rows)

    best = min(radius(some) for some in itertools.combinations(range(12), 3))
    assert radius(tuple(k_center(points, 3).tolist())) <= 2 * best + 1e-6


def test_every_image_is_chosen_once_however_many():
    points = points_of(4, 9)
    points[5] = points[2]
    assert sorted(k_center(points, 9).tolist()) == list(range(9))
    assert sorted(typical(points, 9, seed=0).tolist()) == list(range(9))


def slow_typicality(rows: list[list[float]], number: int) -> float:
    apart = sorted(math.dist(rows[number], row) for other, row in enumerate(rows) if other != number)[:20]
    return 1 / (sum(apart) / len(apart))


def test_typicality_is_one_over_the_mean_distance_to_twenty_neighbours():
    points = torch.nn.functional.normalize(points_of(5, 40), dim=1)
    rows = points.double().tolist()
    expected = [slow_typicality(rows, number) for number in range(40)]
    np.testing.assert_allclose(typicality(points), expected, rtol=1e-4)
    few = [slow_typicality(rows[:3], number) for number in range(3)]
    np.testing.assert_allclose(typicality(points[:3]), few, rtol=1e-4)
    assert typicality(points[:1]).tolist() == [1.0]
    assert torch.isfinite(typicality(points[:1].repeat(3, 1))).all()


def blobs(sizes: list[int], *, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Points about far directions, and the blob of each; mixed, so that numbers tell nothing."""
    generator = np.random.default_rng(seed)
    owner = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = 20 * np.eye(len(sizes), 6)[owner] + generator.normal(size=(len(owner), 6))
    return torch.from_numpy(points).float(), owner.tolist()


def by_loops(points: torch.Tensor, owner: list[int], labels: list[int], weights: list[float], count: int) -> list[int]:
    """The rule read aloud: fewest labels, small clusters last, heaviest first, then the most typical image left."""
    rows = unit(points)
    score = []
    for number, row in enumerate(rows):
        others = [other for other, blob in zip(rows, owner, strict=True) if blob == owner[number]]
        score.append(slow_typicality([row, *(o for o in others if o is not row)], 0))
    served = {blob: labels.count(blob) for blob in owner}
    weight = {blob: sum(w for w, own in zip(weights, owner, strict=True) if own == blob) for blob in owner}

    def rank(number: int) -> tuple[int, bool, float]:
        blob = owner[number]
        return served[blob], owner.count(blob) < 5, -weight[blob]

    chosen: list[int] = []
    for _ in range(count):
        left = [number for number in range(len(rows)) if number not in chosen]
        first = min(rank(number) for number in left)
        best = max((n for n in left if rank(n) == first), key=lambda n: score[n])
        chosen.append(best)
        served[owner[best]] += 1
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_typical_images_of_clusters_in_the_order_of_the_rule(seed, is_weighted, monkeypatch):
    monkeypatch.setattr(coverage, "MOST_CLUSTERS", 5)
    points, owner = blobs([12, 9, 7, 6, 3], seed=seed)
    weights = np.random.default_rng(seed).random(len(owner)) if is_weighted else np.ones(len(owner))
    found = typical(points, 9, seed=seed, weights=torch.from_numpy(weights) if is_weighted else None)
    assert len({owner[n] for n in found[:5].tolist()}) == 5, "k-means found the blobs, or the rest proves nothing"
    assert found.tolist() == by_loops(points, owner, [], weights.tolist(), 9)


def test_doubt_decides_between_clusters_and_not_within_them():
    points, owner = blobs([12, 10, 8, 6])
    weights = torch.tensor([0.9 if blob in (1, 3) else 0.1 for blob in owner])
    found = typical(points, 2, seed=0, weights=weights)  # four clusters, as two would leave no choice
    assert [owner[n] for n in found.tolist()] == [1, 3]
    assert found.tolist() == by_loops(points, owner, [], weights.tolist(), 2)
    assert [owner[n] for n in typical(points, 4, seed=0).tolist()] == [0, 1, 2, 3]


def test_clusters_with_labels_wait(monkeypatch):
    monkeypatch.setattr(coverage, "MOST_CLUSTERS", 5)
    points, owner = blobs([13, 10, 8, 6, 5])
    known = points[[owner.index(0), owner.index(2)]]
    left = [n for n in range(len(owner)) if n not in (owner.index(0), owner.index(2))]
    found = typical(points[left], 3, seed=0, labelled=known)
    owners = [owner[n] for n in left]
    assert [owners[n] for n in found.tolist()] == [1, 3, 4]
    assert found.tolist() == by_loops(points[left], owners, [0, 2], [1.0] * len(left), 3)


def test_length_of_features_does_not_matter():
    points, _ = blobs([10, 8, 6])
    scale = torch.rand(len(points), 1, generator=torch.Generator().manual_seed(0)) * 8 + 0.5
    for found, other in (
        (k_center(points, 7), k_center(points * scale, 7)),
        (typical(points, 3, seed=1), typical(points * scale, 3, seed=1)),
    ):
        assert torch.equal(found, other)
