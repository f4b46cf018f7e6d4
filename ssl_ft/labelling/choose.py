"""The suggestion itself: images in the order to label them, by coverage, by doubt, or by both.

Coverage is in `coverage.py`, doubts come from `doubt.py`; no file, no encoder.
"""

from torch import Tensor

from ssl_ft.labelling.coverage import k_center, typical


def choose(
    features: Tensor,
    count: int,
    *,
    by: str,
    coverage: str,
    seed: int,
    labelled: Tensor | None = None,
    doubts: Tensor | None = None,
) -> Tensor:
    """Return which images to label, int64 [count], the most useful first; deterministic given the seed.

    `both` lets doubt say what is worth covering: with "typical", clusters are served by the sum of their images' doubts
    instead of their number, each with its most typical image, so that no doubtful outlier is taken; with "kcenter",
    distances are multiplied by doubt.

    Args:
        features: float [N, D] of the images to choose from.
        count: 1 to N.
        by: "coverage", "uncertainty" or "both".
        coverage: "typical" or "kcenter".
        seed: of clusters, >= 0.
        labelled: float [L, D], features of the images labelled so far.
        doubts: float [N] in [0, 1], needed unless by "coverage".
    """
    assert by == "coverage" or doubts is not None, "doubt comes from a classifier"
    if by == "uncertainty":
        assert doubts is not None
        return doubts.argsort(descending=True, stable=True)[:count]
    weights = None if by == "coverage" else doubts
    if coverage == "kcenter":
        return k_center(features, count, labelled=labelled, weights=weights)
    return typical(features, count, seed=seed, labelled=labelled, weights=weights)
