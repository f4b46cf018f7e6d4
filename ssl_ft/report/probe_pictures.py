"""What a probe leaves to look at: a map of the embedding and sheets of nearest neighbours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.data.listing import evenly_spread
from ssl_ft.evaluate.features import FeatureSet
from ssl_ft.evaluate.knn import nearest
from ssl_ft.report.pictures import picture_grid

_MAP_POINTS, _QUERIES, _NEIGHBOURS = 1000, 6, 7


def write_embedding(run: Path, own: FeatureSet, class_names: tuple[str, ...], *, seed: int) -> None:
    """Write `embedding.npz`: t-SNE of test images' standardised features, at most 1,000 of them, evenly spread."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    test = own.roles.test
    places = test[evenly_spread(len(test), most=_MAP_POINTS)]
    features = own.features[places].astype(np.float64)
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    features = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    xy = features[:, :2]
    if len(features) > 3:
        xy = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.astype(np.float32))
    np.savez_compressed(
        run / "embedding.npz",
        xy=xy.astype(np.float32),
        labels=own.labels[places],
        class_names=np.array(class_names, dtype=np.str_),
    )


def write_neighbours(run: Path, own: FeatureSet, images: Callable[[NDArray[np.int64]], NDArray[np.uint8]]) -> None:
    """Write `pictures/neighbours.png`: test images in the first column, their nearest training images beside them.

    Args:
        run: its folder.
        own: the features.
        images: uint8 [N, C, H, W] of images of the source, by their indices.
    """
    train, test = own.roles.train, own.roles.test
    queries = test[evenly_spread(len(test), most=_QUERIES)]
    found, _ = nearest(
        torch.from_numpy(own.features[train]),
        torch.from_numpy(own.features[queries]),
        k=min(_NEIGHBOURS, len(train)),
        block=1024,
    )
    rows = [
        images(own.indices[np.concatenate([[q], train[f]])]).transpose(0, 2, 3, 1)
        for q, f in zip(queries, found.numpy(), strict=True)
    ]
    caption = "First column: test images. Beside each, the training images whose features are nearest (cosine)."
    picture_grid(rows, run / "pictures" / "neighbours.png", caption=caption)
