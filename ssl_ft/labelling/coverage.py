"""Images that stand for a pool: the most typical ones of its clusters, or centres with no image far from them.

Labels play no part here; images labelled before count as chosen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ft.evaluate.knn import nearest
from ssl_ft.labelling.clusters import k_means, squared_distances

# Of Hacohen et al.: neighbours that say how dense it is around an image, most clusters, and the fewest images that make
# a cluster worth a label.
_NEIGHBOURS = 20
MOST_CLUSTERS = 500
_SMALL_CLUSTER = 5


@torch.no_grad()
def k_center(features: Tensor, count: int, *, labelled: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Return images chosen greedily, each the farthest from all chosen before, int64 [count], in that order.

    The greedy 2-approximation of the k-center problem (Gonzalez 1985), which Sener & Savarese (2018, algorithm 1) use
    as a core-set. Distances are Euclidean between features of length 1. Without labelled images the first is the one
    nearest to the mean of all. Ties go to the lower number.

    Args:
        features: float [N, D].
        count: 1 to N.
        labelled: float [L, D], features of images that are chosen already.
        weights: float [N] >= 0, multiplied to each image's distance; None: 1.
    """
    assert 1 <= count <= len(features), "images are chosen once"
    points = F.normalize(features.float(), dim=1)
    squares = points.square().sum(1)
    free = torch.ones(len(points), dtype=torch.bool)
    if labelled is None or not len(labelled):
        distances = torch.full((len(points),), torch.inf)
        chosen = [int((points @ points.mean(0)).argmax())]
    else:
        distances = (2 - 2 * nearest(labelled, features, k=1)[1][:, 0]).clamp(min=0)
        chosen = [_farthest(distances, weights, free)]
    while True:
        free[chosen[-1]] = False
        if len(chosen) == count:
            return torch.tensor(chosen)
        distances = torch.minimum(distances, squared_distances(points, squares, chosen[-1]))
        chosen.append(_farthest(distances, weights, free))


def _farthest(distances: Tensor, weights: Tensor | None, free: Tensor) -> int:
    score = distances.sqrt() if weights is None else distances.sqrt() * weights
    return int(score.masked_fill(~free, -torch.inf).argmax())


@torch.no_grad()
def typical(
    features: Tensor, count: int, *, seed: int, labelled: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return the most typical image of each of as many clusters as there will be labels, int64 [count].

    TypiClust of Hacohen, Dekel & Weinshall (2022): k-means on features of length 1 makes L + count clusters, at most
    500; clusters are served by fewest labels, then largest first, and give their image of highest typicality, which is
    1 / (mean distance to its 20 nearest neighbours in the cluster). Clusters of fewer than 5 images left wait until all
    others are served as often. Typicality is worked out once, not again after each choice, and a cluster's size is that
    of its images without a label.

    With weights a cluster's size is the sum of its images' weights; and there are 2 · count clusters at least, up to
    the same 500, so that there is a choice between them.

    Args:
        features: float [N, D].
        count: 1 to N.
        seed: Seed of the clusters' starts, >= 0.
        labelled: float [L, D], features of images that are chosen already.
        weights: float [N] >= 0; None: 1.
    """
    assert 1 <= count <= len(features), "images are chosen once"
    points = F.normalize(features.float(), dim=1)
    known = points[:0] if labelled is None else F.normalize(labelled.float(), dim=1)
    joined = torch.cat([known, points])
    num_wanted = count + (len(known) if weights is None else max(len(known), count))
    num_clusters = min(num_wanted, MOST_CLUSTERS, len(joined))
    assigned = k_means(joined, num_clusters, seed=seed)
    own = assigned[len(known) :]
    waiting, sizes = [], []
    for cluster in range(num_clusters):
        members = (own == cluster).nonzero().squeeze(1)
        waiting.append(members[typicality(points[members]).argsort(descending=True, stable=True)].tolist())
        sizes.append(float(len(members) if weights is None else weights[members].double().sum()))
    labels = torch.bincount(assigned[: len(known)], minlength=num_clusters).tolist()
    return _served(waiting, labels=labels, sizes=sizes, count=count)


def _served(waiting: list[list[int]], *, labels: list[int], sizes: list[float], count: int) -> Tensor:
    """Images of the clusters in turn: fewest labels first, then no small cluster, then the largest."""
    taken = [0] * len(waiting)
    chosen = []
    for _ in range(count):
        open_ones = [c for c in range(len(waiting)) if taken[c] < len(waiting[c])]
        best = min(open_ones, key=lambda c: (labels[c] + taken[c], len(waiting[c]) < _SMALL_CLUSTER, -sizes[c], c))
        chosen.append(waiting[best][taken[best]])
        taken[best] += 1
    return torch.tensor(chosen)


@torch.no_grad()
def typicality(points: Tensor) -> Tensor:
    """1 / (mean Euclidean distance to the 20 nearest others), float32 [N]; of points [N, D] of length 1.

    Fewer where there are fewer others; a point alone has 1, and one on top of its neighbours a large finite value.
    """
    if len(points) < 2:
        return torch.ones(len(points))
    _, similarity = nearest(points, points, k=min(_NEIGHBOURS, len(points) - 1), exclude_self=True)
    return 1 / (2 - 2 * similarity).clamp(min=0).sqrt().mean(1).clamp(min=1e-6)
