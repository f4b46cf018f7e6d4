"""Duplicate images: exact ones by their decoded pixels, near ones by a perceptual hash.

Finding is done here; what a duplicate between a pool and a test set means, and what to do about it, is
decided elsewhere.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_ft.data.images import MAX_PIXELS, DamagedImage, Pixels, decode, to_channels
from ssl_ft.data.listing import Source

Pairs = NDArray[np.int64]
Bits = NDArray[np.uint64]

_CHUNK: Final = 128
_BANDS: Final = 4
_BAND_BITS: Final = 16
_CANDIDATES_AT_ONCE: Final = 2_000_000  # about 100 MB of temporary arrays
_LEAST_CONTRAST: Final = 8  # grey levels; below this the signs of differences are noise


@dataclass(frozen=True, eq=False)
class ContentKeys:
    """What images look like, row by row of a source.

    Attributes:
        pixels: uint64 [N,2], a 128-bit digest of size and decoded pixels; zeros where the image is damaged.
        hashes: uint64 [N], one bit per horizontal brightness step of the 9x8 grey image; 0 where there is
            nothing to compare (damaged, or without contrast), which matches nothing.
        damaged: bool [N].
    """

    pixels: Bits
    hashes: Bits
    damaged: NDArray[np.bool_]


def content_keys(
    source: Source,
    *,
    workers: int = 2,
    white_level: int = 65535,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> ContentKeys:
    """Keys of every image in `source`, decoded by `workers` threads; `on_progress(done, total)` is told now and then.

    A colour file of a grey image has the key of the grey one. Lossy re-saving changes the digest, but hardly
    the hash. Larger images than `max_pixels` count as damaged.
    """
    count = len(source)
    keys = ContentKeys(np.zeros((count, 2), np.uint64), np.zeros(count, np.uint64), np.zeros(count, np.bool_))

    def work(start: int) -> int:
        stop = min(start + _CHUNK, count)
        for index in range(start, stop):
            try:
                image = decode(source.read(index), white_level=white_level, max_pixels=max_pixels)
            except (DamagedImage, OSError):
                keys.damaged[index] = True
                continue
            keys.pixels[index] = _digest(image)
            keys.hashes[index] = _difference_hash(image)
        return stop - start

    done = 0
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for finished in pool.map(work, range(0, count, _CHUNK)):
            done += finished
            if on_progress is not None:
                on_progress(done, count)
    return keys


def exact_duplicates(keys_a: Bits, keys_b: Bits | None = None) -> Pairs:
    """Pairs int64 [P,2] of rows with equal digests (uint64 [N,2]), sorted; zero digests match nothing.

    Without `keys_b`: each later copy with the first one, (first, copy). With it: every row of a that has a
    twin in b with the first such twin, and every further twin in b with the first row of a, so that each row
    concerned appears without listing all m*n combinations.
    """
    groups_a = _group(keys_a)
    if keys_b is None:
        return _sorted(_copies(groups_a))
    groups_b = _group(keys_b)
    joined = np.concatenate([groups_a.keys, groups_b.keys])
    _, number = np.unique(joined, axis=0, return_inverse=True)
    cut = len(groups_a.keys)
    _, of_a, of_b = np.intersect1d(number[:cut], number[cut:], assume_unique=True, return_indices=True)
    return _sorted(_spread(of_a, of_b, groups_a, groups_b))


def near_duplicates(hashes_a: Bits, hashes_b: Bits | None = None, *, max_bits: int = 2) -> Pairs:
    """Pairs int64 [P,2] of rows whose hashes (uint64 [N]) differ in at most `max_bits` of 64 bits, sorted.

    Rows with equal hashes are paired as in `exact_duplicates`. A pair is a hint to look, not a proof: small
    or simple images often share a hash. At most 3 bits: then two hashes agree on at least one of four bands
    of 16 bits, so only rows that share a band are compared.
    """
    if not 0 <= max_bits < _BANDS:
        raise ValueError(f"max_bits must be 0 to {_BANDS - 1}, not {max_bits}")
    groups_a = _group(hashes_a[:, None])
    if hashes_b is None:
        of_a, of_b = _within_bits(groups_a.keys[:, 0], groups_a.keys[:, 0], max_bits)
        once = of_a < of_b
        crossing = _spread(of_a[once], of_b[once], groups_a, groups_a)
        return _sorted(np.concatenate([np.sort(crossing, axis=1), _copies(groups_a)]))
    groups_b = _group(hashes_b[:, None])
    of_a, of_b = _within_bits(groups_a.keys[:, 0], groups_b.keys[:, 0], max_bits)
    return _sorted(_spread(of_a, of_b, groups_a, groups_b))


def _digest(image: Pixels) -> Bits:
    if image.shape[0] == 3 and bool((image[0] == image[1]).all()) and bool((image[0] == image[2]).all()):
        image = image[:1]
    shape = np.array(image.shape, dtype="<i8").tobytes()
    digest = blake2b(shape + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _difference_hash(image: Pixels) -> np.uint64:
    grey = to_channels(image, 1) if image.shape[0] in (1, 3) else image.mean(axis=0, keepdims=True).astype(np.uint8)
    small = np.asarray(Image.fromarray(grey[0]).resize((9, 8), Image.Resampling.BILINEAR)).astype(np.int16)
    if int(small.max()) - int(small.min()) < _LEAST_CONTRAST:
        return np.uint64(0)
    rises = small[:, 1:] > small[:, :-1]
    return np.packbits(rises).view(">u8").astype(np.uint64)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows gathered by equal key: group g holds rows[starts[g] : starts[g] + counts[g]], ascending."""

    keys: Bits
    rows: Pairs
    starts: Pairs
    counts: Pairs


def _group(keys: Bits) -> _Groups:
    used = np.flatnonzero(keys.any(axis=1))
    unique, number, counts = np.unique(keys[used], axis=0, return_inverse=True, return_counts=True)
    rows = used[np.argsort(number, kind="stable")].astype(np.int64)
    return _Groups(unique, rows, (np.cumsum(counts) - counts).astype(np.int64), counts.astype(np.int64))


def _copies(groups: _Groups) -> Pairs:
    firsts = np.repeat(groups.rows[groups.starts], groups.counts)
    is_copy = firsts != groups.rows
    return np.stack([firsts[is_copy], groups.rows[is_copy]], axis=1)


def _spread(of_a: Pairs, of_b: Pairs, groups_a: _Groups, groups_b: _Groups) -> Pairs:
    """Row pairs of matched groups: all of a's rows with b's first, and a's first with the rest of b's."""
    first_a, first_b = groups_a.rows[groups_a.starts[of_a]], groups_b.rows[groups_b.starts[of_b]]
    all_a, all_b = _members(of_a, groups_a), _members(of_b, groups_b)
    with_first_b = np.stack([all_a, np.repeat(first_b, groups_a.counts[of_a])], axis=1)
    with_first_a = np.stack([np.repeat(first_a, groups_b.counts[of_b]), all_b], axis=1)
    rest = all_b != np.repeat(first_b, groups_b.counts[of_b])
    return np.concatenate([with_first_b, with_first_a[rest]])


def _members(which: Pairs, groups: _Groups) -> Pairs:
    return groups.rows[_ranges(groups.starts[which], groups.counts[which])]


def _ranges(starts: Pairs, counts: Pairs) -> Pairs:
    """start, start+1, ..., start+count-1 for each pair, one after the other."""
    begin = np.cumsum(counts) - counts
    within: Pairs = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(begin, counts)
    return within + np.repeat(starts, counts).astype(np.int64)


def _within_bits(a: Bits, b: Bits, max_bits: int) -> tuple[Pairs, Pairs]:
    """Index pairs of unique hashes at most `max_bits` apart, each once."""
    found_a, found_b = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in range(_BANDS):
        order = np.argsort(_band(b, band), kind="stable")
        in_order = _band(b, band)[order]
        low = np.searchsorted(in_order, _band(a, band), side="left")
        counts = np.searchsorted(in_order, _band(a, band), side="right") - low
        for part in _parts(counts):
            index_a = np.repeat(np.arange(part.start, part.stop, dtype=np.int64), counts[part])
            index_b = order[_ranges(low[part], counts[part])]
            apart = a[index_a] ^ b[index_b]
            keep = np.bitwise_count(apart) <= max_bits
            for earlier in range(band):  # a pair that also shares an earlier band was found there
                keep &= _band(apart, earlier) != 0
            found_a.append(index_a[keep])
            found_b.append(index_b[keep].astype(np.int64))
    return np.concatenate(found_a), np.concatenate(found_b)


def _band(hashes: Bits, band: int) -> NDArray[np.uint16]:
    return (hashes >> np.uint64(band * _BAND_BITS)).astype(np.uint16)  # the cast keeps the lowest 16 bits


def _parts(counts: Pairs) -> list[slice]:
    """Consecutive slices, each with about `_CANDIDATES_AT_ONCE` candidates at most."""
    block = (np.cumsum(counts) // _CANDIDATES_AT_ONCE).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(counts)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _sorted(pairs: Pairs) -> Pairs:
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
