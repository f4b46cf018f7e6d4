"""Opening by what is there or by name, joining a test source, subsets, and the sentences for what cannot be opened."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.data.source import KINDS, Source, open_source
from ssl_ft.errors import UserError


def classes(root: Path, *names: str, count: int = 2) -> str:
    for shade, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (2, 2), shade * 10 + number).save(root / name / f"{number}.png")
    return str(root)


def test_every_kind_can_be_named(tmp_path: Path) -> None:
    assert list(KINDS) == ["class_folders", "flat", "manifest", "parquet", "array", "shards", "torchvision", "digits"]
    folder = classes(tmp_path / "x", "a", "b")
    for kind in ("class_folders", "flat"):
        assert open_source(folder, kind=kind).kind == kind


def test_test_location_joins_by_class_name(tmp_path: Path) -> None:
    first = classes(tmp_path / "pool", "cat", "dog", "eel")
    second = classes(tmp_path / "held", "dog", "ant", count=1)
    source = open_source(first, test_location=second)
    assert source.class_names == ("cat", "dog", "eel", "ant")
    assert source.labels is not None
    assert source.splits is not None
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 1]
    assert source.splits.tolist() == ["train"] * 6 + ["test"] * 2
    assert list(source.names)[5:] == ["eel/1.png", "test:ant/0.png", "test:dog/0.png"]
    assert source.read(7) == (tmp_path / "held/dog/0.png").read_bytes()
    assert any("has classes that" in note and "ant" in note for note in source.notes)


def test_joined_numbers_stay_in_order(tmp_path: Path) -> None:
    for name, labels in (("a", [1, 10, -1]), ("b", [2, 10, 1])):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((3, 4, 4), np.uint8), labels=labels)
    source = open_source(str(tmp_path / "a.npz"), test_location=str(tmp_path / "b.npz"))
    assert source.class_names == ("1", "2", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 2, -1, 1, 2, 0]


def test_joining_keeps_val_and_refuses_two_test_splits(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, split=["train", "val", "other"])
    np.savez(tmp_path / "b.npz", images=images, split=["train", "val", "test"])
    np.savez(tmp_path / "c.npz", images=images, labels=[0, 1, 2])
    joined = open_source(str(tmp_path / "a.npz"), test_location=str(tmp_path / "b.npz"))
    assert joined.splits is not None
    assert joined.splits.tolist() == ["train", "val", "train", "test", "test", "test"]
    with pytest.raises(UserError, match="has a test split of its own and a second test source"):
        open_source(str(tmp_path / "b.npz"), test_location=str(tmp_path / "a.npz"))
    with pytest.raises(UserError, match=r"c\.npz has labels and .*a\.npz \(read as array\) has none"):
        open_source(str(tmp_path / "a.npz"), test_location=str(tmp_path / "c.npz"))


def test_subset_reads_the_rows_it_names(tmp_path: Path) -> None:
    source = open_source(classes(tmp_path, "a", "b", "c"))
    part = source.subset(np.array([4, 0, 3])).subset(np.array([2, 0]))
    assert list(part.names) == ["b/1.png", "c/0.png"]
    assert [part.read(0), part.read(1)] == [source.read(3), source.read(4)]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 2]
    assert part.class_names == ("a", "b", "c")
    assert part.fingerprint() == source.subset(np.array([3, 4])).fingerprint()
    assert part.fingerprint() != source.subset(np.array([4, 3])).fingerprint()
    assert len(source.subset(np.array([], dtype=np.int64))) == 0


def test_fingerprint_sees_every_part() -> None:
    def source(**changes: object) -> Source:
        parts: dict[str, object] = {
            "names": ["a", "b"],
            "evidence": lambda i: b"12"[i : i + 1],
            "labels": np.array([0, 1]),
            "class_names": ("x", "y"),
            "splits": np.array(["train", "test"]),
        }
        return Source(kind="k", location="l", read=lambda i: b"", **(parts | changes))  # type: ignore[arg-type]

    prints = [
        source(),
        source(names=["a", "c"]),
        source(evidence=lambda i: b"13"[i : i + 1]),
        source(labels=np.array([0, -1])),
        source(labels=None),
        source(class_names=("x", "z")),
        source(labels=np.array([0, 0])),
        source(labels=np.array([0, 0]), class_names=("xy",)),
        source(splits=np.array(["train", "val"])),
        source(splits=None),
    ]
    assert len({one.fingerprint() for one in prints}) == len(prints)
    with pytest.raises(AssertionError, match="unique"):
        source(names=["a", "a"])
    with pytest.raises(AssertionError, match="names a class"):
        source(labels=np.array([0, 2]))


def test_fingerprint_of_many_rows_is_quick() -> None:
    import time

    many = Source(
        "k", "l", [str(row) for row in range(100_000)], lambda i: b"", lambda i: b"123", np.zeros(100_000, int), ("a",)
    )
    start = time.process_time()
    many.fingerprint()
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        ("fold", "auto", r"There is no .*fold\. Did you mean .*folder\?"),
        ("zzz/y", "auto", r"There is no .*zzz/y\. .* holds folder, list\.txt, one\.png"),
        ("list.txt/x", "auto", "There is no"),
        ("n" * 300, "auto", "longer than this file system allows: its longest part has 300 bytes"),
        ("ü" * 200, "auto", "longest part has 400 bytes"),
        ("a\0b", "auto", "is not a path"),
        ("list.txt", "auto", r"of no kind read here \(its name ends in \.txt\)"),
        ("one.png", "auto", "is a single image. Name the folder"),
        ("one.png", "flat", "is a file, but a folder of images is wanted"),
        ("folder", "array", "is a folder, but a file is wanted"),
        ("folder", "falt", r"kind=falt is not a kind.*Allowed are auto, class_folders.*Did you mean flat\?"),
    ],
)
def test_what_cannot_be_opened_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, kind: str, message: str
) -> None:
    classes(tmp_path / "folder", "a", "b")
    (tmp_path / "list.txt").write_text("x")
    Image.new("L", (2, 2)).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(location, kind=kind)


def test_blank_location() -> None:
    with pytest.raises(UserError, match="No data source is named"):
        open_source("  ")
