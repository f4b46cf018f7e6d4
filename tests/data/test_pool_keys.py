"""Digests of a pool: the same from any number of ranks, each of which reads its share; damaged files of them told."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft import dist
from ssl_ft.data.listing import Source
from ssl_ft.data.pool_keys import PoolKeys, pixel_digests, read_pool_keys, write_pool_keys
from ssl_ft.errors import UserError
from tests.ranks import run_on_ranks


def png(value: int, side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (side, side), value).save(stream, "PNG")
    return stream.getvalue()


def digests(count: int) -> tuple[np.ndarray, int]:
    """Digests of a pool with a damaged and an oversized image, and how many this rank read."""
    read = list[int]()
    raws = [b"" if i == 1 else png(i, side=40 if i == 3 else 4) for i in range(count)]

    def bytes_of(index: int) -> bytes:
        read.append(index)
        return raws[index]

    source = Source("memory", "here", [str(i) for i in range(count)], bytes_of, bytes_of)
    return pixel_digests(source, workers=1, white_level=65535, max_pixels=100), len(read)


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_read_half_each_and_know_all():
    (alone, num_read), parts = digests(7), run_on_ranks(digests, 7, num_ranks=2)
    assert num_read == 7
    assert (~alone.any(axis=1)).tolist() == [i in (1, 3) for i in range(7)]
    assert [number for _, number in parts] == [4, 3]
    for keys, _ in parts:
        np.testing.assert_array_equal(keys, alone)
    assert dist.gather_objects("x") == ["x"]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 2**63, (50, 2), dtype=np.uint64)
    path = tmp_path / "pool_keys.npz"
    write_pool_keys(path, PoolKeys(pixels, np.array([f"{i}.png" for i in range(50)]), 4095))
    known = read_pool_keys(path)
    np.testing.assert_array_equal(known.pixels, pixels)
    assert (known.names[49], known.white_level) == ("49.png", 4095)
    return path


def test_damaged_files_are_told(kept: Path) -> None:
    whole = kept.read_bytes()
    for content in (whole[:100], whole[:-30], b"", b"not a zip", whole[:70] + b"\xff" * 60 + whole[130:]):
        kept.write_bytes(content)
        with pytest.raises(UserError, match=r"pool_keys\.npz cannot be read: "):
            read_pool_keys(kept)
    np.savez(kept, names=np.array(["a"]))
    with pytest.raises(UserError, match=r"cannot be read: .*pixels"):
        read_pool_keys(kept)
    np.savez(kept, names=np.array(["a"]), pixels=np.zeros((2, 2), np.uint64))
    with pytest.raises(UserError, match=r"holds uint64 \(2, 2\) for 1 images"):
        read_pool_keys(kept)
    kept.unlink()
    with pytest.raises(UserError, match="there is no"):
        read_pool_keys(kept)
