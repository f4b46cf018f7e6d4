"""Duplicates: keys of decoded pixels, and pair finding against the obvious loops over all pairs."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.data.duplicates import content_keys, exact_duplicates, near_duplicates
from ssl_ft.data.listing import Source
from ssl_ft.data.source import open_source


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def source_of(*raws: bytes) -> Source:
    names = [str(row) for row in range(len(raws))]
    return Source("memory", "here", names, lambda i: raws[i], lambda i: raws[i])


def photo(seed: int, size: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def test_same_pixels_have_the_same_key_however_they_were_saved() -> None:
    one, other = photo(0), photo(1)
    grey = np.ascontiguousarray(one[..., 0])
    source = source_of(
        encoded(one),
        encoded(one, compress_level=0),
        encoded(one, "BMP"),
        encoded(other),
        encoded(grey),
        encoded(np.stack([grey] * 3, axis=-1)),
        encoded(grey.reshape(32, 128)),
    )
    keys = content_keys(source, workers=2)
    assert keys.pixels.shape == (7, 2)
    same = [tuple(row) for row in keys.pixels.tolist()]
    assert same[0] == same[1] == same[2]
    assert same[4] == same[5]
    assert len(set(same)) == 4
    assert exact_duplicates(keys.pixels).tolist() == [[0, 1], [0, 2], [4, 5]]


def test_damaged_and_featureless_images_match_nothing() -> None:
    flat = encoded(np.full((16, 16, 3), 40, np.uint8))
    flat_too = encoded(np.full((16, 16, 3), 41, np.uint8))
    keys = content_keys(source_of(b"", b"text", flat, flat_too))
    assert keys.damaged.tolist() == [True, True, False, False]
    assert keys.hashes.tolist() == [0, 0, 0, 0]
    assert not keys.pixels[:2].any()
    assert exact_duplicates(keys.pixels).shape == (0, 2)
    assert exact_duplicates(keys.pixels, keys.pixels).tolist() == [[2, 2], [3, 3]]
    assert near_duplicates(keys.hashes, keys.hashes).shape == (0, 2)


def test_images_past_the_limit_or_out_of_reach_have_no_key() -> None:
    raw = encoded(photo(0))

    def read(index: int) -> bytes:
        if index:
            raise OSError("the drive is gone")
        return raw

    source = Source("memory", "here", ["0", "1"], read, lambda i: raw)
    assert content_keys(source).damaged.tolist() == [False, True]
    assert content_keys(source, max_pixels=64 * 64 - 1).damaged.tolist() == [True, True]
    assert content_keys(source, max_pixels=64 * 64).damaged.tolist() == [False, True]


def test_difference_hash_is_one_bit_per_rise() -> None:
    rises = np.random.default_rng(0).integers(0, 2, (8, 8))
    steps = np.concatenate([np.zeros((8, 1), int), np.where(rises == 1, 13, -13)], axis=1)
    grey = (128 + np.cumsum(steps, axis=1)).astype(np.uint8)
    (got,) = content_keys(source_of(encoded(grey))).hashes.tolist()
    assert got == int("".join(str(bit) for bit in rises.reshape(-1)), 2)


def test_resaved_and_resized_photos_are_near() -> None:
    originals = [photo(seed) for seed in range(30)]
    changed = [encoded(np.asarray(Image.fromarray(image).resize((50, 50))), "JPEG", quality=80) for image in originals]
    pool = content_keys(source_of(*(encoded(image) for image in originals)))
    test = content_keys(source_of(*changed))
    assert exact_duplicates(pool.pixels, test.pixels).shape == (0, 2)
    pairs = near_duplicates(pool.hashes, test.hashes, max_bits=3)
    assert all(a == b for a, b in pairs.tolist())
    assert len(pairs) >= 27


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    content_keys(source_of(*[b""] * 300), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300, 300)
    assert len(seen) > 1


def every_pair_star(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """What `exact_duplicates(a, b)` promises, by loops."""
    wanted = set()
    for i, key in enumerate(a.tolist()):
        twins = [j for j, other in enumerate(b.tolist()) if other == key and any(key)]
        firsts = [k for k, other in enumerate(a.tolist()) if other == key]
        wanted |= {(i, twins[0])} if twins else set()
        wanted |= {(firsts[0], j) for j in twins}
    return sorted(map(list, wanted))


@pytest.mark.parametrize("seed", range(5))
def test_exact_duplicates_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, (40, 2)).astype(np.uint64), rng.integers(0, 5, (25, 2)).astype(np.uint64)
    assert exact_duplicates(a, b).tolist() == every_pair_star(a, b)
    within = exact_duplicates(a).tolist()
    rows = a.tolist()
    assert within == sorted([rows.index(key), i] for i, key in enumerate(rows) if rows.index(key) != i and any(key))


def flipped(hashes: np.ndarray, rng: np.random.Generator, bits: int) -> np.ndarray:
    out = hashes.copy()
    for row in range(len(out)):
        for bit in rng.choice(64, bits, replace=False):
            out[row] ^= np.uint64(1) << np.uint64(bit)
    return out


@pytest.mark.parametrize("max_bits", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_against_all_pairs(seed: int, max_bits: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(1, 2**63, 300, dtype=np.uint64)
    b = np.concatenate([flipped(a[20 * k : 20 * k + 20], rng, k) for k in range(6)])
    rng.shuffle(b)
    apart = np.bitwise_count(a[:, None] ^ b[None])
    assert near_duplicates(a, b, max_bits=max_bits).tolist() == np.argwhere(apart <= max_bits).tolist()
    both = np.concatenate([a, b])
    within = np.bitwise_count(both[:, None] ^ both[None]) <= max_bits
    got = near_duplicates(both, max_bits=max_bits)
    assert got.tolist() == np.argwhere(np.triu(within, 1)).tolist()


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_bits must be 0 to 3, not 4"):
        near_duplicates(np.ones(1, np.uint64), max_bits=4)


@pytest.mark.parametrize("crowded", [False, True])
def test_memory_stays_bounded(crowded: bool) -> None:
    rng = np.random.default_rng(0)
    top = 2**63 if not crowded else 2**34  # crowded: the upper bands are nearly all equal, as for dark images
    a, b = (rng.integers(1, top, count, dtype=np.uint64) for count in (60_000, 10_000 if not crowded else 300))
    tracemalloc.start()
    try:
        near_duplicates(a, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20


def test_cifar10_has_no_copies_between_its_splits(shared_data: Path) -> None:
    source = open_source(str(shared_data / "cifar10"))
    assert source.splits is not None
    pool = source.subset(np.flatnonzero(source.splits == "train")[:4000])
    test = source.subset(np.flatnonzero(source.splits == "test")[:2000])
    keys, others = content_keys(pool), content_keys(test)
    assert not keys.damaged.any()
    assert exact_duplicates(keys.pixels, others.pixels).shape == (0, 2)
    assert len(exact_duplicates(keys.pixels, keys.pixels)) >= 3990
