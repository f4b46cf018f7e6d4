"""Neighbours and votes against loops in float64, ties, blocks and ranges."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_ft.evaluate import knn
from ssl_ft.evaluate.knn import NearestSoFar, knn_predict, nearest


def _case(
    seed: int, *, num_train: int = 50, num_queries: int = 13, num_features: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_train, num_features, generator=generator)
    labels = torch.randint(4, (num_train,), generator=generator)
    return features, labels, torch.randn(num_queries, num_features, generator=generator)


def _votes_by_loops(
    features: Tensor, labels: Tensor, queries: Tensor, *, k: int, temperature: float, exclude_self: bool = False
) -> tuple[list[list[int]], np.ndarray]:
    """Neighbours of each query and shares of the vote [M, 4], in float64."""
    neighbours, shares = [], np.zeros((len(queries), 4))
    for m, query in enumerate(queries.double().numpy()):
        similarity = {}
        for n, feature in enumerate(features.double().numpy()):
            if not (exclude_self and n == m):
                norms = math.sqrt(sum(query**2)) * math.sqrt(sum(feature**2))
                similarity[n] = sum(query * feature) / norms
        order = sorted(similarity, key=lambda n: (-similarity[n], n))[:k]
        neighbours.append(order)
        for n in order:
            shares[m, labels[n]] += math.exp(similarity[n] / temperature)
    return neighbours, shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 7, 49])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_equals_loops_in_float64(seed: int, k: int, exclude_self: bool) -> None:
    features, labels, queries = _case(seed)
    queries = features if exclude_self else queries
    neighbours, shares = _votes_by_loops(features, labels, queries, k=k, temperature=0.3, exclude_self=exclude_self)

    indices, _ = nearest(features, queries, k=k, exclude_self=exclude_self)
    predictions, confidences = knn_predict(
        features, labels, queries, k=k, temperature=0.3, num_classes=4, exclude_self=exclude_self
    )

    assert indices.tolist() == neighbours
    assert predictions.tolist() == shares.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidences.numpy(), shares.max(axis=1), rtol=1e-5)


def test_blocks_on_either_side_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small integers: similarities are then equal bit for bit however the product is cut up, and full of ties.
    generator = torch.Generator().manual_seed(0)
    features = torch.eye(3).repeat(20, 1)[torch.randperm(60, generator=generator)]
    whole = nearest(features, features, k=25, exclude_self=True)
    monkeypatch.setattr(knn, "_TRAIN_BLOCK", 7)
    for block in (1, 8, 60):
        cut = nearest(features, features, k=25, block=block, exclude_self=True)
        assert torch.equal(cut[0], whole[0])
        assert torch.equal(cut[1], whole[1])


def test_ties_go_to_the_lower_index_and_the_lower_class() -> None:
    features = torch.ones(3000, 2)
    indices, similarities = nearest(features, torch.ones(2, 2), k=5)
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2
    torch.testing.assert_close(similarities, torch.ones(2, 5))
    predictions, confidences = knn_predict(features[:2], torch.tensor([2, 1]), features[:1], k=2, num_classes=3)
    assert (predictions.tolist(), confidences.tolist()) == ([1], [0.5])


def test_only_directions_count_and_low_temperatures_do_not_overflow() -> None:
    features, labels, queries = _case(0)
    plain = knn_predict(features, labels, queries, k=9, temperature=1e-3, num_classes=4)
    scaled = knn_predict(
        features * torch.rand(50, 1, generator=torch.Generator().manual_seed(0)).add(0.1),
        labels,
        queries * 1e4,
        k=9,
        temperature=1e-3,
        num_classes=4,
    )
    assert torch.isfinite(plain[1]).all()
    assert torch.equal(plain[0], scaled[0])
    # The nearest neighbour alone decides at so low a temperature.
    assert torch.equal(plain[0], labels[nearest(features, queries, k=1)[0][:, 0]])


def test_half_precision_features_are_compared_in_float32() -> None:
    features, _, queries = _case(0)
    assert nearest(features.bfloat16(), queries.bfloat16(), k=3)[1].dtype == torch.float32


@pytest.mark.parametrize(("k", "exclude_self", "limit"), [(51, False, 50), (50, True, 49), (0, False, 50)])
def test_impossible_numbers_of_neighbours_are_refused(k: int, exclude_self: bool, limit: int) -> None:
    features, labels, _ = _case(0)
    with pytest.raises(ValueError, match=f"k={k} neighbours .* there are {limit}"):
        knn_predict(features, labels, features, k=k, num_classes=4, exclude_self=exclude_self)


def test_no_queries_give_no_answers() -> None:
    features, labels, queries = _case(0)
    predictions, confidences = knn_predict(features, labels, queries[:0], k=3, num_classes=4)
    assert predictions.shape == confidences.shape == (0,)


@pytest.mark.parametrize("k", [1, 4, 9, 30])
@pytest.mark.parametrize("seed", range(3))
def test_a_pool_passing_by_in_blocks_gives_the_nearest_of_all(seed, k):
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers of one length are alike in many ways: ties within a block and across blocks.
    pool = torch.randint(0, 2, (30, 4), generator=generator).float() * 2 - 1
    queries = torch.randint(0, 2, (7, 4), generator=generator).float() * 2 - 1
    so_far, numbers = NearestSoFar(queries, k=k), torch.arange(30)
    for start, stop in ((0, 2), (2, 13), (13, 14), (14, 30)):
        so_far.add(pool[start:stop], numbers[start:stop], block=3)
        assert so_far.indices.shape == (7, min(k, stop))
    cosines = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(pool, dim=1).T
    similarities, indices = cosines.sort(dim=1, descending=True, stable=True)
    assert torch.equal(so_far.indices, indices[:, :k])
    assert torch.equal(so_far.similarities, similarities[:, :k])
