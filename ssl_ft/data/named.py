"""Image sets known by name: scikit-learn's digits, and the sets torchvision can fetch.

Nothing is downloaded unless asked. torchvision checks what it fetched against its own checksums.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.data.folders import read_file
from ssl_ft.data.listing import Source, encode_named_labels, encode_splits, sample_content, sample_divisor
from ssl_ft.errors import UserError

DEFAULT_ROOT = "data"


def open_digits() -> Source:
    """scikit-learn's 1797 handwritten digits, 8x8 grey, with a third of each class as test.

    The test third is fixed for all time: within each class, the images whose sha256 of "digits:INDEX" comes
    first.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = digits.target.astype(np.int64)
    splits = np.full(len(images), "train")
    for digit in range(10):
        members = sorted(np.flatnonzero(labels == digit).tolist(), key=_digit_order)
        splits[members[: len(members) // 3]] = "test"
    return Source(
        kind="digits",
        location="digits",
        names=[f"digits#{index}" for index in range(len(images))],
        read=lambda i: images[i],
        evidence=lambda i: images[i].tobytes(),
        labels=labels,
        class_names=tuple(str(digit) for digit in range(10)),
        splits=splits,
    )


def _digit_order(index: int) -> bytes:
    return hashlib.sha256(f"digits:{index}".encode()).digest()


@dataclass(frozen=True)
class _Part:
    """One split of a named set: how torchvision is asked for it, and where the result keeps labels and image paths."""

    split: str
    make: Callable[[str, bool], Any]
    labels: Callable[[Any], Sequence[int]]
    files: Callable[[Any], Sequence[Any]] | None = None  # None where the images are arrays, reached by index


def torchvision_sets() -> dict[str, tuple[_Part, ...]]:
    """Every torchvision set that can be named, with its splits."""
    from torchvision import datasets as tv

    def flagged(make: Any) -> tuple[_Part, ...]:
        return (
            _Part("train", lambda root, fetch: make(root, train=True, download=fetch), lambda made: made.targets),
            _Part("test", lambda root, fetch: make(root, train=False, download=fetch), lambda made: made.targets),
        )

    def packed(make: Any, **asked: str) -> tuple[_Part, ...]:
        return tuple(_Part(called, _asking(make, split), lambda made: made.labels) for called, split in asked.items())

    def filed(make: Any, **asked: str) -> tuple[_Part, ...]:
        return tuple(
            _Part(called, _asking(make, split), lambda made: made._labels, lambda made: made._image_files)
            for called, split in asked.items()
        )

    def pets(called: str, split: str) -> _Part:
        return _Part(called, _asking(tv.OxfordIIITPet, split), lambda made: made._labels, lambda made: made._images)

    return {
        "CIFAR10": flagged(tv.CIFAR10),
        "CIFAR100": flagged(tv.CIFAR100),
        "MNIST": flagged(tv.MNIST),
        "FashionMNIST": flagged(tv.FashionMNIST),
        "KMNIST": flagged(tv.KMNIST),
        "SVHN": packed(tv.SVHN, train="train", test="test"),
        "STL10": packed(tv.STL10, train="train+unlabeled", test="test"),
        "Flowers102": filed(tv.Flowers102, train="train", val="val", test="test"),
        "DTD": filed(tv.DTD, train="train", val="val", test="test"),
        "Food101": filed(tv.Food101, train="train", test="test"),
        "OxfordIIITPet": (pets("train", "trainval"), pets("test", "test")),
        "EuroSAT": (  # comes without splits
            _Part(
                "",
                lambda root, fetch: tv.EuroSAT(root, download=fetch),
                lambda made: made.targets,
                lambda made: [path for path, _ in made.samples],
            ),
        ),
    }


def _asking(make: Any, split: str) -> Callable[[str, bool], Any]:
    return lambda root, fetch: make(root, split=split, download=fetch)


def open_torchvision(location: str, *, download: bool) -> Source:
    """The set named by `torchvision:NAME` or `torchvision:NAME@ROOT` (ROOT: torchvision's folder; ./data if left out).

    Raises:
        UserError: no such set, not there and `download` not asked for, or fetching failed.
    """
    name, _, root = location.removeprefix("torchvision:").partition("@")
    root = os.path.expanduser(root or DEFAULT_ROOT)
    known = torchvision_sets()
    if name not in known:
        raise UserError(f"torchvision:{name} is not a set known here. Known are {', '.join(known)}.")
    opened = [_open_part(part, _make(part, name, root, download), root) for part in known[name]]
    rows = [(part, row) for part in opened for row in range(len(part.names))]
    divisor = sample_divisor(sum(part.packed_bytes for part in opened))
    words = [word for part in opened for word in part.words]
    labels, classes, notes = encode_named_labels([label for part in opened for label in part.labels], words, location)

    def read(index: int) -> bytes | NDArray[np.generic]:
        part, row = rows[index]
        return part.read(row)

    def evidence(index: int) -> bytes:
        part, row = rows[index]
        return part.evidence(row, divisor)

    return Source(
        kind="torchvision",
        location=location,
        names=[name for part in opened for name in part.names],
        read=read,
        evidence=evidence,
        labels=labels,
        class_names=classes,
        splits=encode_splits([part.split for part, _ in rows], location),
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class _OpenedPart:
    split: str
    names: list[str]
    labels: list[int]
    words: list[str | None]
    read: Callable[[int], bytes | NDArray[np.generic]]
    evidence: Callable[[int, int], bytes]  # (row, divisor)
    packed_bytes: int  # of pixels to fingerprint; 0 where the images are files


def _make(part: _Part, name: str, root: str, download: bool) -> Any:
    try:
        return part.make(root, download)
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(
                f"torchvision:{name} could not be fetched into {root}: {error} Check the network and that "
                "the folder can be written, or put the set there by hand."
            ) from error
        raise UserError(
            f"torchvision:{name} is not in {root}. Ask for it with download=true, or say where it is: "
            f"torchvision:{name}@FOLDER."
        ) from error


def _open_part(part: _Part, made: Any, root: str) -> _OpenedPart:
    labels = [int(label) for label in part.labels(made)]
    called = getattr(made, "classes", ())  # not every set has names for its numbers
    words = [str(called[label]) if 0 <= label < len(called) else None for label in labels]
    if part.files is not None:
        paths = [str(path) for path in part.files(made)]
        sizes = [str(os.path.getsize(path)).encode() for path in paths]
        # The split leads, because a set may use one folder for all of them.
        names = [f"{part.split or 'all'}/{os.path.relpath(path, root)}" for path in paths]
        return _OpenedPart(part.split, names, labels, words, lambda i: read_file(paths[i]), lambda i, _: sizes[i], 0)

    def pixels(index: int) -> NDArray[np.generic]:
        return np.asarray(made[index][0])

    names = [f"{part.split}#{row}" for row in range(len(labels))]
    size = pixels(0).nbytes * len(labels)
    return _OpenedPart(part.split, names, labels, words, pixels, lambda i, n: sample_content(pixels(i), n), size)
