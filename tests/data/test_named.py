"""Sets known by name: digits, and torchvision's sets written to disk here in their own formats."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.data.images import decode
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError


def test_digits() -> None:
    source = open_source("digits")
    assert (len(source), source.class_names) == (1797, tuple("0123456789"))
    assert source.labels is not None
    assert source.splits is not None
    image = source.read(0)
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype, image.max()) == ((8, 8), np.uint8, 239)
    held_out = source.splits == "test"
    counts = np.bincount(source.labels)
    assert np.bincount(source.labels[held_out]).tolist() == (counts // 3).tolist()
    # Scores on the digits are compared over years: the split may never move.
    assert np.flatnonzero(held_out)[:8].tolist() == [0, 1, 2, 3, 6, 8, 9, 12]
    assert source.fingerprint() == open_source("digits").fingerprint()


def write_mnist(root: Path, count: int) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 255, (count, 28, 28), dtype=np.uint8)
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(row % 10 for row in range(count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    return images


def test_torchvision_arrays(tmp_path: Path) -> None:
    images = write_mnist(tmp_path, 12)
    source = open_source(f"torchvision:MNIST@{tmp_path}")
    assert source.kind == "torchvision"
    assert source.splits is not None
    assert source.labels is not None
    assert source.splits.tolist() == ["train"] * 12 + ["test"] * 12
    assert source.names[12] == "test#0"
    assert source.class_names[:2] == ("0 - zero", "1 - one")
    assert source.labels[:3].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(source.read(23), images[11])
    assert len(source.fingerprint()) == 64


def test_torchvision_files_stay_encoded(tmp_path: Path) -> None:
    for name in ("River", "Forest"):
        folder = tmp_path / "eurosat/2750" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "1.png")
    source = open_source(f"torchvision:EuroSAT@{tmp_path}")
    assert source.splits is None
    assert source.class_names == ("Forest", "River")
    assert source.names[0] == "all/eurosat/2750/Forest/1.png"
    raw = source.read(0)
    assert isinstance(raw, bytes)
    assert decode(raw).shape == (3, 8, 8)


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MNISTT is not a set known here. Known are CIFAR10"):
        open_source("torchvision:MNISTT")
    with pytest.raises(UserError, match=r"CIFAR10 is not in .*download=true.*torchvision:CIFAR10@FOLDER"):
        open_source(f"torchvision:CIFAR10@{tmp_path}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="digits have a test split"):
        open_source("digits", test_location=str(tmp_path))
