"""Which images lie together, and an order of them that keeps to it: shards in random order, a window read at a time.

Holds no image. The order is a pure function of (stretches, key, position); where images can be read one by one at no
extra cost, `permutation.permute` itself is the better order.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.seeding import derive_seed, hash_int64

# Stretches that a sample of images comes from, where each has to be read as a whole.
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches of consecutive images that lie in one place: the shards of a tar set, the row groups of a Parquet set.

    Attributes:
        starts: int64 [G+1], the first image of each stretch and, last, the number of images; no stretch is empty.
        loaded_bytes: int64 [G], what reading one image of the stretch brings into memory; 0 where it is that image
            alone.
    """

    starts: NDArray[np.int64]
    loaded_bytes: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert len(self.starts) == len(self.loaded_bytes) + 1, "one number of bytes a stretch"
        assert self.starts[0] == 0, "the first stretch begins at image 0"
        assert bool(np.all(np.diff(self.starts) > 0)), "no stretch is empty"

    def of(self, kept: NDArray[np.int64]) -> "Stretches | None":
        """The stretches of the images `kept` (int64 [M], at least one), renumbered; None where they do not ascend."""
        if not bool(np.all(kept[1:] > kept[:-1])):
            return None
        counts = np.diff(np.searchsorted(kept, self.starts))
        used = counts > 0
        return Stretches(np.concatenate([[0], np.cumsum(counts[used])]), self.loaded_bytes[used])

    def images_within(self, num_bytes: int) -> int:
        """How many images' stretches fit into `num_bytes` of memory, on average; 0 where any number does."""
        total = int(self.loaded_bytes.sum())
        return max(1, num_bytes * int(self.starts[-1]) // total) if total else 0

    def sample(self, count: int) -> NDArray[np.int64]:
        """At most `count` images, ascending and spread evenly over some evenly spread stretches, often 64."""
        number = len(self.loaded_bytes)
        used = min(number, max(_SAMPLED, -(-4 * count * number // int(self.starts[-1]))))
        chosen = np.arange(used) * number // used
        sizes = np.diff(self.starts)[chosen]
        wanted = np.minimum(sizes, np.diff(np.arange(used + 1) * count // used))
        parts = zip(self.starts[chosen].tolist(), sizes.tolist(), wanted.tolist(), strict=True)
        return np.concatenate([first + np.arange(few) * size // max(1, few) for first, size, few in parts])


@dataclass(frozen=True, eq=False)
class _Layout:
    """One epoch's order of G stretches in W windows, as int64 tensors.

    Attributes:
        turned: [G], the stretch that is visited at each turn.
        begins: [G+1], the position at which each turn begins, and the end.
        windows: [W+1], the position at which each window begins, and the end.
    """

    turned: Tensor
    begins: Tensor
    windows: Tensor


class WindowedOrder:
    """An order of N images for `permutation.batch_indices`: stretches are permuted, then images within a window.

    A window is a run of permuted stretches, those that begin between two multiples of `window_images`. So it holds less
    than `window_images` plus one stretch, which bounds how far apart in time two images of one stretch can be.

    Laying out an epoch of G stretches takes O(G log G) time and a window of M images O(M log M), once while positions
    stay within them; any position then costs O(log G). What is kept from call to call only saves time.

    Args:
        stretches: which images lie together.
        window_images: about how many images a window holds.
    """

    def __init__(self, stretches: Stretches, *, window_images: int) -> None:
        assert window_images >= 1, "a window holds at least one image"
        self.starts = torch.from_numpy(np.array(stretches.starts))  # a copy: torch wants to own what it could write to
        self.window_images = window_images
        self._layout = lru_cache(2)(self._lay_out)
        self._shuffled = lru_cache(4)(_shuffled)

    def __call__(self, positions: Tensor, *, num_items: int, key: int) -> Tensor:
        """The images int64 [B] at `positions` (int64 [B], each in 0..num_items-1) of the epoch that `key` names."""
        assert num_items == int(self.starts[-1]), "this order is of another number of images"
        layout = self._layout(key)
        number = torch.searchsorted(layout.windows, positions, right=True) - 1
        places = torch.empty_like(positions)
        for window in number.unique().tolist():
            begin, end = layout.windows[window : window + 2].tolist()
            chosen = number == window
            inside = self._shuffled(end - begin, derive_seed(key, "window", window))
            places[chosen] = begin + inside[positions[chosen] - begin]
        turn = torch.searchsorted(layout.begins, places, right=True) - 1
        return self.starts[layout.turned[turn]] + places - layout.begins[turn]

    def _lay_out(self, key: int) -> _Layout:
        turned = _shuffled(len(self.starts) - 1, derive_seed(key, "stretches"))
        begins = torch.zeros(len(self.starts), dtype=torch.int64)
        torch.cumsum(self.starts.diff()[turned], 0, out=begins[1:])
        number = begins[:-1] // self.window_images
        is_first = torch.cat([torch.ones(1, dtype=torch.bool), number[1:] != number[:-1]])
        return _Layout(turned, begins, torch.cat([begins[:-1][is_first], begins[-1:]]))


def _shuffled(count: int, key: int) -> Tensor:
    """int64 [count], the permutation of 0..count-1 that sorts the hashes of its numbers.

    Not `permute`: on sets of this size most of a round lands outside and is walked again, and a table is small.
    """
    return hash_int64(torch.arange(count), key=key, columns=1).squeeze(1).argsort(stable=True)
