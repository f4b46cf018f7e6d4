"""k-means with k-means++ starts (Arthur & Vassilvitskii 2007), seeded, in blocks of rows: the same on every call.

Not here: what clusters are used for.
"""

import numpy as np
import torch
from torch import Tensor

# Rows whose distances to all centres are held at a time.
_BLOCK = 8192
_MOST_ROUNDS = 30


@torch.no_grad()
def k_means(points: Tensor, num_clusters: int, *, seed: int) -> Tensor:
    """Return the cluster of each point, int64 [N]; every cluster has a point where N distinct points allow it.

    Lloyd's rounds from k-means++ centres, until no point changes its cluster or 30 rounds are over; a cluster that
    loses all its points keeps its centre.

    Args:
        points: float [N, D].
        num_clusters: 1 to N.
        seed: Seed of the starts, >= 0.
    """
    assert 1 <= num_clusters <= len(points), "a cluster needs a point"
    centres = points[plus_plus(points, num_clusters, seed=seed)].clone()
    assigned = _nearest_centre(points, centres)
    for _ in range(_MOST_ROUNDS):
        counts = torch.bincount(assigned, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        has_points = counts > 0
        centres[has_points] = sums[has_points] / counts[has_points, None]
        moved = _nearest_centre(points, centres)
        if torch.equal(moved, assigned):
            break
        assigned = moved
    return assigned


@torch.no_grad()
def plus_plus(points: Tensor, count: int, *, seed: int) -> Tensor:
    """Return the k-means++ starts, int64 [count]: each drawn in proportion to its squared distance from those before.

    Where all points left lie on a start, the first of them not taken yet.

    Args:
        points: float [N, D].
        count: 1 to N.
        seed: Seed of the draws, >= 0.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(points)])))
    squares = points.square().sum(1)
    chosen = [int(generator.integers(len(points)))]
    distances = squared_distances(points, squares, chosen[0])
    while len(chosen) < count:
        cumulated = distances.double().cumsum(0)
        if float(cumulated[-1]) > 0:
            place = torch.searchsorted(cumulated, float(generator.random()) * float(cumulated[-1]), right=True)
            chosen.append(min(int(place), len(points) - 1))
        else:
            taken = set(chosen)
            chosen.append(next(index for index in range(len(points)) if index not in taken))
        distances = torch.minimum(distances, squared_distances(points, squares, chosen[-1]))
    return torch.tensor(chosen)


def squared_distances(points: Tensor, squares: Tensor, index: int) -> Tensor:
    """Squared Euclidean distances of all points to one of them, float [N], exactly 0 to itself.

    Args:
        points: float [N, D].
        squares: float [N], squared length of each.
        index: which one.
    """
    distances = (squares + squares[index] - 2 * (points @ points[index])).clamp(min=0)
    distances[index] = 0
    return distances


def _nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """The centre of least distance for each point, on a tie the lower one; |x|² is the same for all centres."""
    squares = centres.square().sum(1)
    return torch.cat([(squares - 2 * (part @ centres.T)).argmin(1) for part in points.split(_BLOCK)])
