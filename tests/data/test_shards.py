"""Reading shards: memory that does not grow, subsets, tampering, damage, URLs, row groups from many threads."""

import itertools
import json
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_ft.build.data import build_order, pool_of
from ssl_ft.config import DataSettings
from ssl_ft.data import shards
from ssl_ft.data.batches import batches
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.index_files import INDEX_FOLDER, IndexFile, Shard
from ssl_ft.data.indexing import build_index
from ssl_ft.data.listing import join_test
from ssl_ft.data.packing import PackOptions, pack
from ssl_ft.data.permutation import batch_indices
from ssl_ft.data.source import Source, open_source
from ssl_ft.data.store import DecodeOptions, ImageStore
from ssl_ft.errors import UserError
from tests.data.shardmaking import shaded_tar, sparse_array
from tests.pools import noise_images, source_of


def packed(folder: Path, count: int = 60, *, layout: Any = "tar", is_labelled: bool = False) -> Source:
    """Images whose first pixel is their number, in several shards."""
    images = noise_images(count, side=6)
    images[:, 0, 0, 0] = np.arange(count)
    labels = np.arange(count) % 3 if is_labelled else None
    shard_bytes = 20_000 if layout == "tar" else 2000
    pack(source_of(list(images), labels=labels), folder, PackOptions(layout=layout, shard_bytes=shard_bytes))
    return open_source(str(folder))


def shade(raw: object) -> int:
    assert isinstance(raw, bytes)
    return int(decode(raw)[0, 0, 0])


def test_ten_million_images_take_no_memory(tmp_path: Path) -> None:
    count, num_shards = 10_000_000, 1000
    names = [f"{number:06d}.tar" for number in range(num_shards)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    lengths = {"offsets": "<i8", "sizes": "<u4", "labels": "<i8", "name_ends": "<i8"}
    for array, dtype in lengths.items():
        sparse_array(tmp_path / INDEX_FOLDER / f"{array}.npy", dtype, count)
    sparse_array(tmp_path / INDEX_FOLDER / "names.npy", "|u1", 1)
    index = IndexFile(
        layout="tar",
        shards=tuple(Shard(name=name, num_bytes=1, num_images=count // num_shards) for name in names),
        class_names=("only",),
        arrays=dict.fromkeys(lengths, count) | {"names": 1},
        identity="a digest",
    )
    (tmp_path / INDEX_FOLDER / "index.json").write_text(index.model_dump_json())
    settings = DataSettings(path=str(tmp_path))
    tracemalloc.start()
    try:
        source = open_source(str(tmp_path))
        pool, test = pool_of(source, settings)
        order = build_order(pool, settings)
        seen = [batch_indices(step, num_images=len(pool), batch_size=256, seed=0, order=order) for step in (0, 10**6)]
        assert pool.names[9_999_999] == "000999.tar#9999"
        assert len(pool.fingerprint()) > 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pool) == count
    assert len(test) == 0
    assert [epoch for epoch, _ in seen] == [0, 25]
    assert all(len(indices.unique()) == 256 for _, indices in seen)
    assert peak < 4 * 2**20  # index.json and the thousand shards; ten million numbers would be 80 MB


@pytest.mark.parametrize("layout", ["tar", "parquet"])
def test_subsets_of_consecutive_rows_are_views(tmp_path: Path, layout: str) -> None:
    source = packed(tmp_path / "s", 30, layout=layout, is_labelled=True)
    assert source.labels is not None
    part = source.subset(np.arange(2, 7))
    assert part.labels is not None
    assert np.shares_memory(part.labels, source.labels)
    assert [part.read(i) for i in range(5)] == [source.read(i) for i in range(2, 7)]
    assert list(part.names) == list(source.names)[2:7]
    odd = part.subset(np.array([0, 3]))
    assert [odd.read(0), odd.read(1)] == [source.read(2), source.read(5)]
    assert odd.labels is not None
    assert odd.labels.tolist() == source.labels[[2, 5]].tolist()
    assert source.subset(np.arange(30)) is source
    prints = [one.fingerprint() for one in (source, part, odd, source.subset(np.arange(5)), join_test(part, odd))]
    assert len(set(prints)) == 5
    assert part.fingerprint() == source.subset(np.arange(2, 7)).fingerprint()
    assert list(part.names[1:3]) == [source.names[3], source.names[4]]
    with pytest.raises(IndexError):
        part.names[5]


def test_a_split_of_shards_is_the_pool_and_joining_keeps_shards_together(tmp_path: Path) -> None:
    shaded_tar(tmp_path / "one/train-0.tar", range(4))
    shaded_tar(tmp_path / "one/train-1.tar", range(4, 7))
    shaded_tar(tmp_path / "two/a.tar", range(10, 15))
    for name in ("one", "two"):
        build_index(str(tmp_path / name))
    joined = open_source(str(tmp_path / "one"), test_location=str(tmp_path / "two"))
    assert [shade(joined.read(i)) for i in (0, 6, 7, 11)] == [0, 6, 10, 14]
    assert joined.names[7] == "test:a.tar/00010.png"
    pool, test = pool_of(joined, DataSettings())
    assert test.tolist() == [7, 8, 9, 10, 11]
    assert pool.stretches is not None
    assert pool.stretches.starts.tolist() == [0, 4, 7]
    limited, _ = pool_of(joined, DataSettings(limit=3))
    assert len(limited) == 3
    assert limited.stretches is not None
    assert limited.stretches.starts[-1] == 3


def take(folder: Path, start: int, stop: int, *, window: int = 16) -> list[Any]:
    """Batches of 8 of a source opened anew, as after a crash."""
    source = open_source(str(folder))
    store = ImageStore(source, DecodeOptions(3, 6), seed=0, is_decoded=False)
    order = build_order(source, DataSettings(window_images=window))
    return list(batches(store, batch_size=8, seed=1, start_step=start, num_steps=stop, workers=2, order=order))


@pytest.mark.parametrize("layout", ["tar", "parquet"])
def test_resumed_anywhere_and_on_two_ranks_the_same_images_come(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_ft.data.packing.GROUP_BYTES", 500)
    packed(tmp_path / "s", layout=layout)
    whole = take(tmp_path / "s", 0, 16)  # two epochs of seven batches, and more
    for first in (whole[:7], whole[7:14]):
        numbers = torch.cat([batch.images_BCSS[:, 0, 0, 0] for batch in first])
        assert len(numbers.unique()) == 56
    for start in (1, 6, 7, 13):
        for late, early in zip(take(tmp_path / "s", start, 16), whole[start:], strict=True):
            assert torch.equal(late.indices_B, early.indices_B)
            assert torch.equal(late.images_BCSS, early.images_BCSS)
    monkeypatch.setattr("ssl_ft.dist.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("ssl_ft.dist.rank", lambda rank=rank: rank)
        shares.append(take(tmp_path / "s", 5, 9))
    for batch, *parts in zip(whole[5:9], *shares, strict=True):
        assert torch.equal(torch.cat([part.images_BCSS for part in parts]), batch.images_BCSS)


def test_a_windows_row_groups_are_each_read_once_by_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_ft.data.packing.GROUP_BYTES", 500)
    source = packed(tmp_path / "s", 100, layout="parquet")
    assert source.stretches is not None
    num_groups = len(source.stretches.loaded_bytes)
    assert num_groups > 20
    for module in ("data.shards", "build.data"):
        monkeypatch.setattr(f"ssl_ft.{module}.HELD_GROUP_BYTES", int(source.stretches.loaded_bytes.max()) * 12)
    loaded: list[int] = []
    load = shards._ParquetImages._load
    monkeypatch.setattr(shards._ParquetImages, "_load", lambda self, n: (loaded.append(n), load(self, n))[1])
    expected = [shade(source.read(i)) for i in range(100)]
    assert loaded == list(range(num_groups))
    loaded.clear()
    order = build_order(source, DataSettings(window_images=20))
    images = order(torch.arange(100), num_items=100, key=4).tolist()
    source = open_source(str(tmp_path / "s"))  # with nothing in memory
    with ThreadPoolExecutor(4) as pool:
        assert [shade(raw) for raw in pool.map(source.read, images)] == [expected[i] for i in images]
    assert sorted(loaded) == list(range(num_groups))
    with pytest.raises(UserError, match=r"data.window_images=90 is too many.*Set data.window_images=\d+, or pack"):
        build_order(source, DataSettings(window_images=90))


def test_shards_that_are_not_those_indexed(tmp_path: Path) -> None:
    packed(tmp_path / "s")
    files = sorted((tmp_path / "s").glob("*.tar"))
    with files[0].open("ab") as file:
        file.write(b"\0")
    files[1].unlink()
    with pytest.raises(UserError, match=r"other shards than were indexed: .*000000.tar has other bytes.*1.tar is gone"):
        open_source(str(tmp_path / "s"))


def spoilt_indices(folder: Path) -> Iterator[str]:
    """Spoil the index in one way after the other, and say what should be told."""
    index = folder / "index.json"
    text = json.loads(index.read_text())

    def write(**changes: Any) -> None:
        index.write_text(json.dumps(text | changes))

    index.write_text(index.read_text()[:-50])
    yield "index.json: Invalid JSON"
    write(format="someone else's")
    yield "format: Input should be"
    write(arrays={"offsets": 60})
    yield "it lacks sizes"
    write(arrays=text["arrays"] | {"secrets": 60})
    yield "an array called secrets is not known"
    write(arrays=text["arrays"] | {"sizes": 61})
    yield r"sizes.npy is uint32 \[60\], and 61 values belong there"
    write(shards=text["shards"][:1])
    yield "values for"
    write(class_names=["a"], arrays=text["arrays"] | {"labels": 60})
    np.save(folder / "labels.npy", np.ones(60, np.int64))
    yield "labels.npy names classes that are not there"
    np.save(folder / "labels.npy", np.array([None] * 60), allow_pickle=True)
    yield "labels.npy cannot be read"
    write()
    sizes = (folder / "sizes.npy").read_bytes()
    (folder / "sizes.npy").write_bytes(sizes[:-9])
    yield "sizes.npy cannot be read"


@pytest.mark.parametrize("way", range(9))
def test_a_spoilt_index_is_named(tmp_path: Path, way: int) -> None:
    packed(tmp_path / "s")
    told = next(itertools.islice(spoilt_indices(tmp_path / "s" / INDEX_FOLDER), way, None))
    with pytest.raises(UserError, match=f"The index of .*s is damaged: .*{told}.*Remove its folder {INDEX_FOLDER}"):
        open_source(str(tmp_path / "s"))


def test_groups_that_do_not_add_up(tmp_path: Path) -> None:
    packed(tmp_path / "s", layout="parquet")
    path = tmp_path / "s" / INDEX_FOLDER / "groups.npy"
    groups = np.load(path)
    for row, column, value in ((0, 0, 1), (-1, 1, 99), (0, 3, -1)):
        wrong = groups.copy()
        wrong[row, column] = value
        np.save(path, wrong)
        with pytest.raises(UserError, match=r"groups\.npy does not add up"):
            open_source(str(tmp_path / "s"))


def test_damage_behind_a_sound_index_is_found_image_by_image(tmp_path: Path) -> None:
    source = packed(tmp_path / "s", 20)
    sizes = np.load(tmp_path / "s" / INDEX_FOLDER / "sizes.npy")
    path = tmp_path / "s" / INDEX_FOLDER / "offsets.npy"
    offsets = np.load(path)
    offsets[3], offsets[4] = -5, 10**9
    np.save(path, offsets)
    shard = tmp_path / "s" / source.names[7].partition("/")[0]
    content = bytearray(shard.read_bytes())
    content[offsets[7] : offsets[7] + sizes[7]] = b"?" * int(sizes[7])
    shard.write_bytes(content)
    source = open_source(str(tmp_path / "s"))
    with pytest.raises(DamagedImage, match="cannot be an image"):
        source.read(3)
    with pytest.raises(DamagedImage, match=r"ends \d+ bytes before the image does"):
        source.read(4)
    options = DecodeOptions(channels=3, side=6, max_damaged_share=0.2)
    store = ImageStore(source, options, seed=0, is_decoded=True)
    assert [damage.name for damage in store.damages] == [source.names[i] for i in (3, 4, 7)]


def test_a_row_group_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    packed(tmp_path / "s", 20, layout="parquet")
    for shard in (tmp_path / "s").glob("*.parquet"):
        content = bytearray(shard.read_bytes())
        content[4:60] = b"\xff" * 56  # the header of the first page
        shard.write_bytes(content)
    source = open_source(str(tmp_path / "s"))
    with pytest.raises(DamagedImage, match=r"row group 0 of shard-000000\.parquet cannot be read"):
        source.read(0)


@pytest.mark.parametrize("layout", ["tar", "parquet"])
@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_urls_give_the_same_images(tmp_path: Path, layout: str, scheme: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    local = packed(tmp_path / "s", layout=layout)
    url = f"file://{tmp_path / 's'}"
    if scheme == "memory":
        url = f"memory://{tmp_path.name}/s"
        files = fsspec.filesystem("memory")
        files.put(str(tmp_path / "s"), f"{tmp_path.name}/s", recursive=True)
    remote = open_source(url)
    assert remote.fingerprint() == local.fingerprint()
    assert list(remote.names) == list(local.names)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(remote.read, range(60))) == [local.read(i) for i in range(60)]


def test_shards_behind_a_url_are_indexed_there_and_trouble_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    files, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/s"
    files.pipe(f"{tmp_path.name}/s/a.tar", shaded_tar(tmp_path / "a.tar", range(5)).read_bytes())
    with pytest.raises(UserError, match="no index of its shards yet"):
        open_source(url)
    assert build_index(url) == 5
    source = open_source(url)
    assert [shade(source.read(i)) for i in range(5)] == list(range(5))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    failures = iter([OSError("the network is down"), None])
    read = type(files).cat_file

    def flaky(self: Any, *args: Any, **kwargs: Any) -> Any:
        failure = next(failures, OSError("the network is down"))
        if failure is not None:
            raise failure
        return read(self, *args, **kwargs)

    monkeypatch.setattr(type(files), "cat_file", flaky)
    assert shade(source.read(2)) == 2
    with pytest.raises(UserError, match=r"a.tar cannot be read: the network is down\. Start the command again"):
        source.read(2)
    for wrong in ("nonsense://x/y", f"memory://{tmp_path.name}/none"):
        with pytest.raises(UserError, match="cannot be"):
            open_source(wrong)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'ssl_ft\[remote\]'"):
        open_source("s3://bucket/shards")
