"""Indexing shards that others wrote: webdataset's tars, Parquet of the hub, foreign members, damage and mistakes."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ft.data import index_files
from ssl_ft.data.images import decode
from ssl_ft.data.indexing import build_index
from ssl_ft.data.source import Source, is_unindexed, open_source
from ssl_ft.errors import UserError
from tests.data.shardmaking import png, shaded_tar, write_tar


def indexed(folder: Path) -> Source:
    build_index(str(folder))
    return open_source(str(folder))


def shades(source: Source) -> list[int]:
    raws = [source.read(index) for index in range(len(source))]
    return [int(decode(raw)[0, 0, 0]) for raw in raws if isinstance(raw, bytes)]


def test_webdataset_samples(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "b-000001.tar",
        {
            "./": b"",
            "./x/1.jpg": png(1),
            "./x/1.cls": "3\n",
            "./x/2.v2.json": json.dumps({"label": 12, "caption": "not ours"}),  # the label may come first
            "./x/2.png": png(2),
        },
    )
    write_tar(
        tmp_path / "a-000000.tar",
        {
            "5.txt": "a caption",
            "5.webp": png(5),
            "5.cls": "",
            "6.mask.png": png(99),  # beside 6.png it is something about that image
            "6.png": png(6),
            "6.cls": "3",
            "._6.png": b"a Mac's notes",
            "7.txt": "no image",
            "8.input.png": png(8),
        },
    )
    source = indexed(tmp_path)
    assert source.kind == "shards"
    assert shades(source) == [5, 6, 8, 1, 2]
    assert list(source.names)[1:4] == ["a-000000.tar/6.png", "a-000000.tar/8.input.png", "b-000001.tar/./x/1.jpg"]
    assert source.class_names == ("3", "12")
    assert source.labels is not None
    assert source.labels.tolist() == [-1, 0, -1, 0, 1]
    assert source.splits is None
    told = " ".join(source.notes)
    for phrase in ("2 of 5 images have no label", "2 .txt files", "1 samples without an image", "1 further images"):
        assert phrase in told
    assert source.stretches is not None
    assert source.stretches.starts.tolist() == [0, 3, 5]


def test_splits_from_shard_names_words_for_labels_and_long_or_odd_names(tmp_path: Path) -> None:
    long = "d" * 120 + "/" + "n" * 150  # more than a plain tar header holds
    about = json.dumps({"label": 0, "label_name": "cat", "name": "original/cat.png"})
    write_tar(tmp_path / "train-000.tar", {"1.png": png(1), "1.json": about, f"{long}.png": png(2)})
    write_tar(tmp_path / "valid-000.tar", {"größe/\udcff.png": png(3)})
    source = indexed(tmp_path)
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "train", "val"]
    assert source.class_names == ("cat",)
    assert list(source.names) == [
        "train-000.tar/original/cat.png",
        f"train-000.tar/{long}.png",
        "valid-000.tar/größe/\\udcff.png",
    ]
    assert shades(source) == [1, 2, 3]


def test_equal_names_in_a_shard_stay_two_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for shade in (1, 2, 3):
            (tmp_path / "x.png").write_bytes(png(shade))
            archive.add(tmp_path / "x.png", "x.png")
            archive.addfile(tarfile.TarInfo(f"{shade}.txt"))
    (tmp_path / "x.png").unlink()
    source = indexed(tmp_path)
    assert list(source.names) == ["a.tar/x.png", "a.tar/x.png#1", "a.tar/x.png#2"]
    assert shades(source) == [1, 2, 3]


def parquet(path: Path, count: int = 5, *, start: int = 0, metadata: Any = None, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = columns.pop("image", [png(start + row) for row in range(count)])
    table = pa.table({"image": images, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    images = [{"bytes": png(row), "path": f"{row}.png"} for row in range(5)]
    features = {"info": {"features": {"label": {"names": ["cat", "ant"], "_type": "ClassLabel"}}}}
    hub = {"huggingface": json.dumps(features)}
    parquet(tmp_path / "train-00000-of-00001.parquet", image=images, label=[1, 0, 1, None, -1], metadata=hub)
    parquet(tmp_path / "test-00000-of-00001.parquet", 3, start=10, label=[0, 0, 1], metadata=hub)
    source = indexed(tmp_path)
    assert shades(source) == [10, 11, 12, 0, 1, 2, 3, 4]
    assert source.class_names == ("cat", "ant")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1, 0, 1, -1, -1]
    assert source.splits is not None
    assert source.splits.tolist() == ["test"] * 3 + ["train"] * 5
    assert [source.names[2], source.names[-1]] == [
        "test-00000-of-00001.parquet#2",
        "train-00000-of-00001.parquet/4.png",
    ]
    assert source.stretches is not None
    assert source.stretches.starts.tolist() == [0, 2, 3, 5, 7, 8]  # row groups of two
    assert source.stretches.loaded_bytes.min() > 2 * 60


def test_parquet_without_anything_but_images_and_blocks_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_files, "_BLOCK", 3)
    parquet(tmp_path / "b.parquet", 4, start=5)
    parquet(tmp_path / "a.parquet", 5)
    source = indexed(tmp_path)
    assert shades(source) == list(range(9))
    assert source.labels is None
    assert source.names[8] == "b.parquet#3"
    labelled = tmp_path / "labelled"
    parquet(labelled / "a.parquet", 7, label=["b", "a", "b", "", "c", "a", "b"], split=["train"] * 6 + ["extra"])
    source = indexed(labelled)
    assert source.labels is not None
    assert source.splits is not None
    assert source.labels.tolist() == [1, 0, 1, -1, 2, 0, 1]
    assert source.splits.tolist() == ["train"] * 6 + ["extra"]


def test_what_cannot_be_indexed_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, match: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=match):
            build_index(str(tmp_path / name))
        assert sorted(tmp_path.rglob("*")) == before

    shaded_tar(tmp_path / "mixed/a.tar", range(2))
    parquet(tmp_path / "mixed/b.parquet")
    refused("mixed", r"tar shards \(a.tar\) and Parquet shards \(b.parquet\)")
    write_tar(tmp_path / "zipped/a.tar.gz", {})
    refused("zipped", r"compressed tars \(a.tar.gz\)")
    write_tar(tmp_path / "bare/a.tar", {"1.txt": "x"})
    refused("bare", "hold no images; passed over were 1 .txt files")
    (tmp_path / "empty").mkdir()
    refused("empty", r"no \.tar or \.parquet files")
    whole = shaded_tar(tmp_path / "cut/a.tar", range(9)).read_bytes()
    (tmp_path / "cut/a.tar").write_bytes(whole[: 512 + 40])  # ends within the first image
    refused("cut", "a.tar cannot be read as a tar: unexpected end of data.*cut short")
    (tmp_path / "cut/a.tar").write_bytes(whole[:1024] + b"garbage!" * 64 + whole[1536:])
    refused("cut", "a.tar is damaged: no member begins at byte 1024")
    (tmp_path / "cut/a.tar").write_bytes(b"")
    refused("cut", "a.tar cannot be read as a tar: empty file")
    parquet(tmp_path / "torn/a.parquet")
    (tmp_path / "torn/a.parquet").write_bytes((tmp_path / "torn/a.parquet").read_bytes()[:-20])
    refused("torn", "a.parquet cannot be read as Parquet")
    parquet(tmp_path / "half/train-0.parquet")
    parquet(tmp_path / "half/more.parquet")
    refused("half", r"some images say which split they are in \(train\) and some do not")
    parquet(tmp_path / "text/a.parquet", image=["x"])
    refused("text", "`image` has type string")
    monkeypatch.setattr(index_files, "_MOST_CLASSES", 4)
    parquet(tmp_path / "many/a.parquet", label=list("abcde"))
    refused("many", "more than 4 different labels")


def test_a_tar_without_its_end_is_read_and_mentioned(tmp_path: Path) -> None:
    path = shaded_tar(tmp_path / "a.tar", range(3))
    path.write_bytes(path.read_bytes()[: 2 * 1024])  # two whole members
    source = indexed(tmp_path)
    assert shades(source) == [0, 1]
    assert "missing end of a.tar" in source.notes[0]


def test_a_large_tar_is_several_stretches_and_an_empty_one_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_ft.data.shards._LONGEST_STRETCH", 4)
    shaded_tar(tmp_path / "a.tar", range(9))
    write_tar(tmp_path / "b.tar", {"readme.txt": "nothing here"})
    shaded_tar(tmp_path / "c.tar", range(9, 13))
    source = indexed(tmp_path)
    assert source.stretches is not None
    assert source.stretches.starts.tolist() == [0, 4, 8, 9, 13]
    assert [source.names[i] for i in (8, 9)] == ["a.tar/00008.png", "c.tar/00009.png"]
    assert shades(source) == list(range(13))


def test_which_folders_are_shards(tmp_path: Path) -> None:
    path = shaded_tar(tmp_path / "s/a.tar", range(3))
    assert is_unindexed(str(tmp_path / "s"))
    with pytest.raises(UserError, match=r"no index of its shards yet.*ssl-ft index data=.*data.kind=shards"):
        open_source(str(tmp_path / "s"))
    build_index(str(tmp_path / "s"))
    assert not is_unindexed(str(tmp_path / "s"))
    with pytest.raises(UserError, match="has an index already"):
        build_index(str(tmp_path / "s"))
    # A tar beside images is a left-over of a download, as before.
    (tmp_path / "f/cat").mkdir(parents=True)
    path.rename(tmp_path / "f/a.tar")
    (tmp_path / "f/cat/1.png").write_bytes(png(1))
    assert not is_unindexed(str(tmp_path / "f"))
    assert open_source(str(tmp_path / "f")).kind == "flat"
    # Parquet is held in memory where it has no index, and is asked for by name.
    parquet(tmp_path / "p/a.parquet")
    assert not is_unindexed(str(tmp_path / "p"))
    assert open_source(str(tmp_path / "p")).kind == "parquet"
    assert is_unindexed(str(tmp_path / "p"), kind="shards")
    assert not is_unindexed("a\0b")
