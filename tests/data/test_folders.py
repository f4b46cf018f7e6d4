"""Folders of image files: which layout is read how, what is passed over, and what is said about it."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.data.folders import open_images, read_file
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError


def place(root: Path, *paths: str) -> Path:
    """Small grey images at `paths`, each of its own shade."""
    for shade, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), shade * 7).save(file, "PNG")
    return root


def test_one_level_of_class_folders(tmp_path: Path) -> None:
    source = open_source(str(place(tmp_path, "dog/b.png", "cat/z.PNG", "cat/a.jpg")))
    assert source.kind == "class_folders"
    assert list(source.names) == ["cat/a.jpg", "cat/z.PNG", "dog/b.png"]
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]
    assert source.splits is None
    assert source.notes == ()
    raw = source.read(2)
    assert isinstance(raw, bytes)
    np.testing.assert_array_equal(decode(raw), np.zeros((1, 3, 4)))


def test_split_level_above_class_folders(tmp_path: Path) -> None:
    source = open_source(str(place(tmp_path, "Train/a/1.png", "Train/b/1.png", "validation/a/2.png", "test/b/3.png")))
    assert source.kind == "class_folders"
    assert source.labels is not None
    assert source.splits is not None
    assert source.class_names == ("a", "b")
    assert dict(zip(source.names, source.splits.tolist(), strict=True)) == {
        "Train/a/1.png": "train",
        "Train/b/1.png": "train",
        "test/b/3.png": "test",
        "validation/a/2.png": "val",
    }
    assert any("the val split has no images of b" in note for note in source.notes)


def test_numbered_classes_are_ordered_by_number(tmp_path: Path) -> None:
    source = open_source(str(place(tmp_path, "10/a.png", "9/a.png", "2/a.png")))
    assert source.class_names == ("2", "9", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1]


def test_order_is_by_bytes_of_the_whole_path(tmp_path: Path) -> None:
    # "a-b/x" sorts before "a/x" by bytes ("-" is less than "/"), after it part by part
    source = open_source(str(place(tmp_path, "a/x.png", "a-b/x.png", "B/x.png")))
    assert list(source.names) == ["B/x.png", "a-b/x.png", "a/x.png"]


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (("a/1.png", "b/1.png", "2.png"), "2.png lies 0 folders deep"),
        (("a/1.png", "b/c/1.png"), "b/c/1.png lies 2 folders deep"),
        (("a/1.png", "a/2.png"), "one class folder only"),
        (("train/1.png", "test/1.png"), "lies 1 folders deep where 2"),
    ],
)
def test_other_layouts_are_flat_and_say_why(tmp_path: Path, paths: tuple[str, ...], reason: str) -> None:
    place(tmp_path, *paths)
    source = open_source(str(tmp_path))
    assert source.kind == "flat"
    assert source.labels is None
    assert source.class_names == ()
    assert any("without labels" in note and reason in note for note in source.notes)
    with pytest.raises(UserError, match=f"cannot be read as class folders: .*{reason}.*kind=flat"):
        open_source(str(tmp_path), kind="class_folders")


def test_flat_keeps_splits_and_plain_folders_need_no_remark(tmp_path: Path) -> None:
    splits = open_source(str(place(tmp_path / "s", "train/1.png", "test/x/1.png"))).splits
    assert splits is not None
    assert splits.tolist() == ["test", "train"]
    assert open_source(str(place(tmp_path / "p", "1.png", "2.png"))).notes == ()
    flat = open_source(str(place(tmp_path / "c", "a/1.png", "b/1.png")), kind="flat")
    assert flat.labels is None


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    place(tmp_path, "a/1.png", "b/1.png", "__MACOSX/a/1.png", ".cache/1.png", "a/.2.png")
    (tmp_path / "a/readme.txt").write_text("x")
    (tmp_path / "b/Thumbs.db").write_text("x")
    (tmp_path / "b/anim.gif").write_text("x")
    (tmp_path / "b/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b/itself.png").symlink_to(tmp_path / "b/itself.png")
    os.mkfifo(tmp_path / "b/pipe.png")
    source = open_source(str(tmp_path))
    assert list(source.names) == ["a/1.png", "b/1.png"]
    said = " ".join(source.notes)
    for part in ("1 .txt", "1 .db", "1 .gif", "1 .png", "3 hidden", "2 links that lead nowhere"):
        assert part in said


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    place(tmp_path, "set/a/1.png", "elsewhere/2.png")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert list(source.names) == ["a/1.png", "b/2.png"]
    assert any("1 links that lead back" in note for note in source.notes)


def test_names_that_are_not_ascii_or_not_even_text(tmp_path: Path) -> None:
    place(tmp_path, "größe/图像.png", "über/é.png")
    undecodable = os.fsdecode(b"\xff\xfe.png")
    place(tmp_path, f"größe/{undecodable}")
    source = open_source(str(tmp_path))
    assert list(source.names) == ["größe/图像.png", r"größe/\xff\xfe.png", "über/é.png"]
    assert source.class_names == ("größe", "über")
    assert len(source.fingerprint()) == 64
    assert all(source.read(index) for index in range(3))


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .*: it is empty\. Images are files ending in"):
        open_source(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.gif").write_text("x")
    with pytest.raises(UserError, match=r"it holds 1 \.txt, 1 \.gif|it holds 1 \.gif, 1 \.txt"):
        open_images(tmp_path, "flat")


def test_fingerprint_covers_names_labels_and_sizes_but_not_the_place(tmp_path: Path) -> None:
    one = open_source(str(place(tmp_path / "one", "a/1.png", "b/1.png")))
    two = open_source(str(place(tmp_path / "two", "a/1.png", "b/1.png")))
    assert one.fingerprint() == two.fingerprint()
    prints = {one.fingerprint()}
    prints.add(open_source(str(place(tmp_path / "three", "a/1.png", "c/1.png"))).fingerprint())
    prints.add(open_source(str(tmp_path / "one"), kind="flat").fingerprint())
    with open(tmp_path / "two/a/1.png", "ab") as file:
        file.write(b"x")
    prints.add(open_source(str(tmp_path / "two")).fingerprint())
    assert len(prints) == 4


def test_unreadable_file_is_damage_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(place(tmp_path, "a/1.png", "b/1.png")))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(DamagedImage, match="cannot be read: No such file"):
        source.read(0)
    monkeypatch.setattr("ssl_ft.data.folders.MAX_FILE_BYTES", 10)
    with pytest.raises(DamagedImage, match="larger than"):
        read_file(str(tmp_path / "b/1.png"))


def test_flowers(shared_data: Path) -> None:
    source = open_source(str(shared_data / "flowers5/images"))
    assert source.kind == "class_folders"
    assert source.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert source.splits is not None
    assert (len(source), int((source.splits == "test").sum())) == (1250, 250)
    above = open_source(str(shared_data / "flowers5"), kind="flat")
    assert above.kind == "flat"
    assert any("1 .csv" in note for note in above.notes)


def test_splits_below_another_folder_are_refused_not_read_as_one_pool(tmp_path: Path) -> None:
    place(tmp_path, "images/train/a/1.png", "images/train/b/2.png", "images/test/a/3.png")
    with pytest.raises(UserError, match=r"folders named test, train below others.*right above the splits"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path), kind="flat")) == 3
    splits = open_source(str(tmp_path / "images")).splits
    assert splits is not None
    assert sorted(splits.tolist()) == ["test", "train", "train"]
