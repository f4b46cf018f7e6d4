"""A keyed permutation of 0..N-1 in O(1) memory, and the order of images it gives to training steps.

Holds no image and no state. A Feistel network permutes the smallest even power of two that holds N; values that
land outside 0..N-1 are sent through again until they land inside (cycle walking, Black & Rogaway 2002).
"""

import torch
from torch import Tensor

from ssl_ft.seeding import derive_seed, hash_int64

# Four rounds give a strong pseudo-random permutation for ideal round functions (Luby & Rackoff 1988); two more
# make up for domains of a few bits, where four show visible bias.
_ROUNDS = 6


def permute(positions: Tensor, *, num_items: int, key: int) -> Tensor:
    """Send positions through the permutation of 0..num_items-1 that `key` names.

    Args:
        positions: int64 [B], each in 0..num_items-1.
        num_items: size N of the permuted set, 1 to 2^62.
        key: any 64-bit int.

    Returns:
        int64 [B], distinct where positions are distinct.
    """
    assert num_items >= 1, "an empty set has no permutation"
    half = max(1, ((num_items - 1).bit_length() + 1) // 2)
    values = positions.clone()
    outside = torch.ones_like(values, dtype=torch.bool)
    while True:
        values = torch.where(outside, _feistel(values, half_bits=half, key=key), values)
        outside = values >= num_items
        if not bool(outside.any()):
            return values


def _feistel(values: Tensor, *, half_bits: int, key: int) -> Tensor:
    low_mask = (1 << half_bits) - 1
    left, right = values >> half_bits, values & low_mask
    for turn in range(_ROUNDS):
        word = hash_int64(right, key=derive_seed(key, "feistel", turn), columns=1).squeeze(1)
        left, right = right, left ^ (word & low_mask)
    return (left << half_bits) | right


def steps_per_epoch(*, num_images: int, batch_size: int) -> int:
    """Whole batches in one pass; the remainder (fewer than one batch, other images each epoch) is left out."""
    return num_images // batch_size


def batch_indices(step: int, *, num_images: int, batch_size: int, seed: int) -> tuple[int, Tensor]:
    """The images of the global batch of `step`: a pure function of its arguments.

    Returns:
        The epoch (int) and int64 [batch_size], distinct image indices.
    """
    epoch, within = divmod(step, steps_per_epoch(num_images=num_images, batch_size=batch_size))
    positions = torch.arange(within * batch_size, (within + 1) * batch_size, dtype=torch.int64)
    return epoch, permute(positions, num_items=num_images, key=derive_seed(seed, "order", epoch))
