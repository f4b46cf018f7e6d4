"""Nearest neighbours by cosine similarity and the weighted vote among them: tensors in, tensors out.

Both sides are walked in blocks, so no N × M matrix is ever held. Not here: extracting features, scoring.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Training features per block: with 1024 queries a block of similarities takes 64 MiB.
_TRAIN_BLOCK = 16384


@torch.no_grad()
def nearest(
    features: Tensor, queries: Tensor, *, k: int, block: int = 1024, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the k nearest features of each query, most similar first, ties by lower index.

    Args:
        features: float [N, D].
        queries: float [M, D], on the same device.
        k: Number of neighbours, 1 to N (to N − 1 with `exclude_self`).
        block: Queries handled at once.
        exclude_self: Queries are the features themselves; none is its own neighbour.

    Returns:
        Indices int64 [M, k] and cosine similarities float32 [M, k]; a zero vector has similarity 0 to everything.

    Raises:
        ValueError: k is out of range.
    """
    available = len(features) - int(exclude_self)
    if not 1 <= k <= available:
        raise ValueError(f"k={k} neighbours were asked for, but there are {available}: choose k from 1 to {available}.")
    assert not exclude_self or len(queries) == len(features), "exclude_self needs the features as queries"
    gallery = F.normalize(features.float(), dim=1)
    indices, similarities = [], []
    for start in range(0, len(queries), block):
        rows = F.normalize(queries[start : start + block].float(), dim=1)
        found, similarity = _nearest_of_block(gallery, rows, k=k, own_start=start if exclude_self else None)
        indices.append(found)
        similarities.append(similarity)
    if not indices:
        empty = gallery.new_empty(0, k)
        return empty.long(), empty
    return torch.cat(indices), torch.cat(similarities)


class NearestSoFar:
    """The k nearest of a pool that passes by in blocks, so that neither the pool nor a matrix over it is held.

    Args:
        queries: float [M, D].
        k: Number of neighbours, >= 1.
    """

    def __init__(self, queries: Tensor, *, k: int) -> None:
        assert k >= 1, "a query has a neighbour at least"
        self._queries, self._k = F.normalize(queries.float(), dim=1), k
        self.similarities = self._queries.new_empty(len(queries), 0)
        self.indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)

    @torch.no_grad()
    def add(self, features: Tensor, indices: Tensor, *, block: int = 1024) -> None:
        """Let some of the pool pass by; `indices` int64 and `similarities` float32 [M, k] are then the nearest so far.

        Fewer than k columns while fewer images have passed; most similar first, ties in the order they came.

        Args:
            features: float [N, D].
            indices: int64 [N], their numbers in the pool.
            block: Queries handled at once.
        """
        gallery = F.normalize(features.float(), dim=1)
        columns = min(self._k, self.indices.shape[1] + len(gallery))
        best = self.similarities.new_empty(len(self._queries), columns)
        where = self.indices.new_empty(len(self._queries), columns)
        for start in range(0, len(self._queries), block):
            part = slice(start, start + block)
            column, value = _top(self._queries[part] @ gallery.T, min(self._k, len(gallery)))
            # Those who came earlier stand first, so picking by column keeps ties in order.
            values = torch.cat([self.similarities[part], value], dim=1)
            numbers = torch.cat([self.indices[part], indices.to(column.device)[column]], dim=1)
            column, best[part] = _top(values, columns)
            where[part] = numbers.gather(1, column)
        self.similarities, self.indices = best, where


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    block: int = 1024,
    exclude_self: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the class that each query's k nearest training features vote for, weight exp(similarity / temperature).

    Args:
        train_features: float [N, D].
        train_labels: int64 [N] in [0, num_classes).
        queries: float [M, D].
        k: Number of neighbours, 1 to N (to N − 1 with `exclude_self`).
        temperature: Softness of the vote, > 0.
        num_classes: C.
        block: Queries handled at once.
        exclude_self: Queries are the training features themselves; none votes on itself.

    Returns:
        Predictions int64 [M], on a tie the lowest class, and confidences float32 [M], the winner's share of the vote.

    Raises:
        ValueError: k or temperature is out of range.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not possible: it must be above 0.")
    indices, similarities = nearest(train_features, queries, k=k, block=block, exclude_self=exclude_self)
    neighbour_labels = train_labels.to(indices.device)[indices]
    # A softmax is the vote's weights divided by their sum, without exp() overflowing at low temperatures.
    weights = torch.softmax(similarities / temperature, dim=1)
    votes = weights.new_zeros(len(queries), num_classes)
    rows = torch.arange(len(queries), device=votes.device)
    for rank in range(k):
        # One neighbour at a time: no two writes meet, so the sums have a fixed order on every device.
        votes[rows, neighbour_labels[:, rank]] += weights[:, rank]
    confidences, predictions = votes.max(dim=1)
    return predictions, confidences


def _nearest_of_block(gallery: Tensor, rows: Tensor, *, k: int, own_start: int | None) -> tuple[Tensor, Tensor]:
    best = rows.new_empty(len(rows), 0)
    best_index = torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    for start in range(0, len(gallery), _TRAIN_BLOCK):
        similarity = rows @ gallery[start : start + _TRAIN_BLOCK].T
        if own_start is not None:
            own = torch.arange(own_start, own_start + len(rows), device=rows.device) - start
            here = (own >= 0) & (own < similarity.shape[1])
            similarity[here.nonzero().squeeze(1), own[here]] = -torch.inf
        column, value = _top(similarity, min(k, similarity.shape[1]))
        # Earlier blocks hold lower indices and come first, so picking by column keeps ties in order of index.
        best, best_index = torch.cat([best, value], dim=1), torch.cat([best_index, column + start], dim=1)
        column, best = _top(best, min(k, best.shape[1]))
        best_index = best_index.gather(1, column)
    return best_index, best


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns and values [B, k] of each row's k largest, in falling order, ties by lower column."""
    top, column = values.topk(k, dim=1)
    # topk leaves it open which of several equal values it takes. Rows with a tie across the border are sorted in full.
    tied = ((values >= top[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    if len(tied):
        column[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    column = column.sort(dim=1).values
    top, order = values.gather(1, column).sort(dim=1, descending=True, stable=True)
    return column.gather(1, order), top
