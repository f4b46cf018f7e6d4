"""The order in which groups of images (classes, labels) come equally often, however large each is.

A pure function of (groups, key, place), as `permutation.permute` is: no state. It is no bijection, for small groups
come more than once an epoch: image i comes as i, i + N, i + 2N …, a number of its own each time, so that it is seen in
another view each time.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.data.permutation import permute
from ssl_ft.seeding import derive_seed


class BalancedOrder:
    """An `Order` whose places go round the groups; within a group every image comes once before any comes again.

    Args:
        groups: int64 arrays of images, not empty; an image may be in several.
    """

    def __init__(self, groups: Sequence[NDArray[np.int64]]) -> None:
        assert groups, "an order needs groups"
        assert all(map(len, groups)), "a group has images"
        self._groups = [torch.from_numpy(np.sort(group)) for group in groups]

    def __call__(self, positions: Tensor, *, num_items: int, key: int) -> Tensor:
        """The images int64 [B] at `positions`: image + num_items × (how often its group was gone through before)."""
        count = len(self._groups)
        turns, place = positions // count, positions % count
        # Which group begins differs from epoch to epoch: the last round of an epoch may be cut short.
        group_of = permute(place, num_items=count, key=derive_seed(key, "groups"))
        images = torch.empty_like(positions)
        for group in group_of.unique().tolist():
            members, here = self._groups[group], group_of == group
            rounds, within = turns[here] // len(members), turns[here] % len(members)
            for lap in rounds.unique().tolist():
                own = derive_seed(key, "balanced", group, lap)
                places = permute(within[rounds == lap], num_items=len(members), key=own)
                spots = torch.nonzero(here)[:, 0][rounds == lap]
                images[spots] = members[places] + num_items * lap
        return images


def class_groups(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The images of each class that has any; labels int64 [N]."""
    return [np.flatnonzero(labels == cls) for cls in np.unique(labels)]


def label_groups(targets: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The positives of each label that has any, and last the images without a positive; targets float32 [N, K]."""
    positives = targets == 1
    groups = [np.flatnonzero(positives[:, label]) for label in range(targets.shape[1])]
    return [group for group in (*groups, np.flatnonzero(~positives.any(axis=1))) if len(group)]
