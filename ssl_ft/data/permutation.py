"""A keyed permutation of 0..N-1 in O(1) memory, and the order of images it gives to training steps.

Holds no image and no state. A Feistel network permutes the smallest even power of two that holds N; values that
land outside 0..N-1 are sent through again until they land inside (cycle walking, Black & Rogaway 2002).
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.seeding import derive_seed, hash_words

# Four rounds give a strong pseudo-random permutation for ideal round functions (Luby & Rackoff 1988); two more
# make up for domains of a few bits, where four show visible bias.
_ROUNDS = 6


class Order(Protocol):
    """Sends places in an epoch to images, as a bijection of 0..num_items-1 that `key` names; `permute` is one.

    `BalancedOrder` is none: it numbers repeats of image i as i + num_items, i + 2 num_items, ….
    """

    def __call__(self, positions: Tensor, *, num_items: int, key: int) -> Tensor:
        """The images int64 [B] at `positions` (int64 [B])."""
        ...


def permute(positions: Tensor, *, num_items: int, key: int) -> Tensor:
    """Send positions through the permutation of 0..num_items-1 that `key` names.

    Args:
        positions: int64 [B] on the CPU, each in 0..num_items-1.
        num_items: size N of the permuted set, 1 to 2^62.
        key: any 64-bit int.

    Returns:
        int64 [B], distinct where positions are distinct.
    """
    assert num_items >= 1, "an empty set has no permutation"
    half = max(1, ((num_items - 1).bit_length() + 1) // 2)
    values = _feistel(positions.numpy().astype(np.uint64), half_bits=half, key=key)
    # Fewer each round: only those that landed outside walk on.
    while len(outside := np.flatnonzero(values >= num_items)):
        values[outside] = _feistel(values[outside], half_bits=half, key=key)
    return torch.from_numpy(values.astype(np.int64))


def _feistel(values: NDArray[np.uint64], *, half_bits: int, key: int) -> NDArray[np.uint64]:
    shift, low_mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & low_mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (hash_words(right, key=derive_seed(key, "feistel", turn)) & low_mask)
    return (left << shift) | right


def steps_per_epoch(*, num_images: int, batch_size: int) -> int:
    """Whole batches in one pass; the remainder (fewer than one batch, other images each epoch) is left out."""
    return num_images // batch_size


def batch_indices(
    step: int, *, num_images: int, batch_size: int, seed: int, order: Order = permute
) -> tuple[int, Tensor]:
    """The images of the global batch of `step` in an order: a pure function of its arguments.

    Returns:
        The epoch (int) and int64 [batch_size], distinct image indices.
    """
    epoch, within = divmod(step, steps_per_epoch(num_images=num_images, batch_size=batch_size))
    positions = torch.arange(within * batch_size, (within + 1) * batch_size, dtype=torch.int64)
    return epoch, order(positions, num_items=num_images, key=derive_seed(seed, "order", epoch))
