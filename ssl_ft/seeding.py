"""Counter-based randomness: every random number is a pure function of named integers.

No generator, no state, no order of calls: the same (seed, purpose, epoch, index, view) gives the same number on
any rank, worker or device. Torch's own generators are not touched here.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment (Steele, Lea & Flood 2014)
_MIX_1 = 0xBF58476D1CE4E5B9  # the two multipliers of its finalizer (variant 13 of Stafford)
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Two's complement: torch has no full uint64 arithmetic, but int64 products wrap to the same bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(x: int) -> int:
    x = (x ^ (x >> 30)) * _MIX_1 & _MASK
    x = (x ^ (x >> 27)) * _MIX_2 & _MASK
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; masking the copies of the sign bit makes it the logical shift we need.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit key for `purpose`, independent of the keys of other purposes and counters.

    Args:
        seed: the run's seed, any int.
        purpose: what the numbers are for, such as "crop"; part of the key.
        counters: further ints (epoch, view, …), order matters.
    """
    key = _mix_int((seed & _MASK) + _GOLDEN)
    for part in (zlib.crc32(purpose.encode()), *counters):
        key = _mix_int((key ^ _mix_int((part & _MASK) + _GOLDEN)) + _GOLDEN & _MASK)
    return key


def hash_int64(indices: Tensor, *, key: int, columns: int) -> Tensor:
    """Uniform 64-bit words for each index and column.

    Args:
        indices: int64 [B], any values.
        key: from `derive_seed`.
        columns: number of words an index.

    Returns:
        int64 [B, columns] on the device of `indices`.
    """
    rows = _mix(indices.to(torch.int64).unsqueeze(1) * _signed(_GOLDEN) + _signed(key))
    column = torch.arange(1, columns + 1, dtype=torch.int64, device=indices.device)
    return _mix(rows + column * _signed(_GOLDEN))


def hash_words(words: NDArray[np.uint64], *, key: int) -> NDArray[np.uint64]:
    """The first column of `hash_int64`, in NumPy: for small arrays on a CPU each of its operations costs a fifth.

    Args:
        words: uint64 of any shape.
        key: from `derive_seed`.
    """
    golden = np.uint64(_GOLDEN)
    return _mix_words(_mix_words(words * golden + np.uint64(key & _MASK)) + golden)


def _mix_words(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


def uniform(indices: Tensor, *, seed: int, purpose: str, epoch: int = 0, view: int = 0, columns: int = 1) -> Tensor:
    """Uniform numbers in [0, 1), one row an image.

    They are multiples of 2^-24, so float32 holds them exactly and no rounding reaches 1.

    Args:
        indices: int64 [B], image indices.
        seed: the run's seed.
        purpose: what the numbers are for.
        epoch: epoch counter.
        view: which view of the image.
        columns: numbers an image.

    Returns:
        float32 [B, columns] on the device of `indices`.
    """
    words = hash_int64(indices, key=derive_seed(seed, purpose, epoch, view), columns=columns)
    return _shift_right(words, 40).to(torch.float32) * 2.0**-24
