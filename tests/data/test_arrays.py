"""NumPy files: accepted shapes and types, labels and splits beside them, and what is refused with which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_ft.data.images import decode
from ssl_ft.data.source import Source, open_source
from ssl_ft.errors import UserError


def stack(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def saved(path: Path, **entries: Any) -> Source:
    np.savez(path, **entries)
    return open_source(str(path))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3), (5, 6, 7, 13), (5, 3, 4, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    images = stack(*shape, dtype=dtype)
    np.save(tmp_path / "x.npy", images)
    source = open_source(str(tmp_path / "x.npy"))
    assert source.kind == "array"
    assert (len(source), source.names[4]) == (5, "x.npy#4")
    assert (source.labels, source.splits) == (None, None)
    np.testing.assert_array_equal(source.read(3), images[3])


def test_float_images_become_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 2 * 3 * 4).reshape(2, 3, 4))
    raw = open_source(str(tmp_path / "x.npy")).read(1)
    assert isinstance(raw, np.ndarray)
    assert raw.dtype == np.float32
    assert decode(raw).max() == 255


def test_npz_with_labels_and_split(tmp_path: Path) -> None:
    images = stack(4, 5, 5)
    source = saved(tmp_path / "x.npz", images=images, labels=np.array([7, 3, -1, 7]), split=["train"] * 3 + ["valid"])
    assert source.class_names == ("3", "7")
    assert source.labels is not None
    assert source.splits is not None
    assert source.labels.tolist() == [1, 0, -1, 1]
    assert source.splits.tolist() == ["train", "train", "train", "val"]
    named = saved(tmp_path / "y.npz", images=images, labels=np.array(["b", "a", "", "b"]))
    assert named.class_names == ("a", "b")


def test_fingerprint_sees_a_single_pixel(tmp_path: Path) -> None:
    images = stack(4, 5, 5)
    before = saved(tmp_path / "x.npz", images=images).fingerprint()
    images[2, 4, 4] += 1
    assert saved(tmp_path / "x.npz", images=images).fingerprint() != before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (stack(5, 6), r"shape \(5, 6\)\. Wanted is \[images, height, width\]"),
        (stack(5, 3, 32, 32), r"looks like \[images, channels, height, width\].*transpose\(0, 2, 3, 1\)"),
        (stack(0, 6, 6), "holds no images"),
        (stack(5, 6, 6, dtype="int32"), "type int32"),
        (stack(5, 6, 6, dtype="float32"), r"must lie in 0\.\.1; these run from 0 to 1\d\d\. Divide"),
    ],
)
def test_unusable_images(tmp_path: Path, images: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "x.npy"))


def test_unusable_files(tmp_path: Path) -> None:
    images = stack(3, 4, 4)
    with pytest.raises(UserError, match=r"no entry `images`; its entries are x, y"):
        saved(tmp_path / "a.npz", x=images, y=[1])
    with pytest.raises(UserError, match=r"`labels` has shape \(2,\), but there are 3 images"):
        saved(tmp_path / "a.npz", images=images, labels=[1, 2])
    with pytest.raises(UserError, match="no Python objects"):
        saved(tmp_path / "a.npz", images=images, labels=np.array([1, "a", None], dtype=object))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "c.npy").write_bytes(b"")
    np.savez_compressed(tmp_path / "d.npz", images=np.zeros((3, 40, 40), np.uint8))
    packed = bytearray((tmp_path / "d.npz").read_bytes())
    packed[60:70] = b"\xff" * 10  # inside the packed bytes
    (tmp_path / "d.npz").write_bytes(packed)
    for name in ("b.npz", "c.npy", "d.npz"):
        with pytest.raises(UserError, match="cannot be read as a NumPy file"):
            open_source(str(tmp_path / name))
