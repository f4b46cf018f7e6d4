"""Packing: the same images, labels, splits and names as the source, whole or not at all, in a mixed order."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.listing import Source
from ssl_ft.data.packing import PackOptions, pack
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError
from tests.data.shardmaking import png
from tests.pools import noise_images, source_of


def mixed(count: int = 40) -> Source:
    """Encoded files, labelled here and there, in three splits."""
    images: list[Any] = [png(number) for number in range(count)]
    return Source(
        kind="test",
        location="memory",
        names=[f"class {number % 3}/{number}.png" for number in range(count)],
        read=lambda index: images[index],
        evidence=lambda index: b"",
        labels=np.array([-1 if number % 7 == 0 else number % 3 for number in range(count)]),
        class_names=("zebra", "ant", "cat"),  # numbered by their own order, not by the alphabet
        splits=np.array(["train", "train", "test", "my own"])[np.arange(count) % 4],
    )


def by_name(source: Source) -> dict[str, tuple[Any, ...]]:
    assert source.labels is not None
    assert source.splits is not None
    names = [name.partition("/")[2] if source.kind == "shards" else name for name in source.names]
    rows = zip(range(len(source)), source.labels.tolist(), source.splits.tolist(), strict=True)
    return {name: (source.read(i), label, split) for name, (i, label, split) in zip(names, rows, strict=True)}


@pytest.mark.parametrize(("layout", "shard_bytes"), [("tar", 15_000), ("parquet", 500)])
def test_packed_is_the_source_in_another_order(tmp_path: Path, layout: Any, shard_bytes: int) -> None:
    source = mixed()
    assert pack(source, tmp_path / "out", PackOptions(layout=layout, shard_bytes=shard_bytes)) == []
    shards = open_source(str(tmp_path / "out"))
    assert by_name(shards) == by_name(source)
    assert shards.class_names == source.class_names
    files = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert len(files) > 6
    assert {name.partition("-")[0] for name in files} == {"train", "test", "shard"}
    # A tar ends with blanks up to a multiple of 10 KiB; Parquet has a description of some 2 KB at its end.
    assert (
        max(path.stat().st_size for path in (tmp_path / "out").glob("*.*")) <= {"tar": 20_480, "parquet": 3_500}[layout]
    )
    # Neighbours of the source are apart: a window over shards of one class each would hold that class alone.
    numbers = [int(name.rpartition("/")[2].removesuffix(".png")) for name in shards.names]
    assert np.abs(np.diff(numbers[:20])).mean() > 6
    # Nothing depends on when, where or by whom it was written.
    pack(source, tmp_path / "again", PackOptions(layout=layout, shard_bytes=shard_bytes))
    assert open_source(str(tmp_path / "again")).fingerprint() == shards.fingerprint()
    # Shards can be packed anew.
    pack(shards, tmp_path / "other", PackOptions(layout="parquet" if layout == "tar" else "tar"))
    twice = {name.partition("/")[2]: row for name, row in by_name(open_source(str(tmp_path / "other"))).items()}
    assert twice == by_name(source)


def test_shards_are_what_others_read(tmp_path: Path) -> None:
    pack(mixed(), tmp_path / "tar", PackOptions())
    with tarfile.open(tmp_path / "tar/train-000000.tar") as archive:
        members = archive.getnames()
        described = archive.extractfile(members[1])
        assert described is not None
        about = json.load(described)
    assert [name.partition(".")[2] for name in members] == ["png", "json"] * 20
    assert members[0].partition(".")[0] == members[1].partition(".")[0]
    assert set(about) >= {"name", "split"}
    pack(mixed(), tmp_path / "parquet", PackOptions(layout="parquet"))
    table = pq.read_table(tmp_path / "parquet/train-000000.parquet")
    assert table.column_names == ["image", "name", "label", "label_name", "split"]


def test_arrays_become_png_of_the_pixels_that_training_sees(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 4096, (5, 6), dtype=np.uint16)
    images: list[Any] = [*noise_images(3), grey, noise_images(1)[0, :, :, 0], np.full((4, 4), 0.5, np.float32)]
    source = source_of(images)
    pack(source, tmp_path / "out", PackOptions(white_level=4095))
    shards = open_source(str(tmp_path / "out"))
    for index, name in enumerate(shards.names):
        original = int(name.rpartition(" ")[2])
        assert np.array_equal(decode(shards.read(index)), decode(source.read(original), white_level=4095))
    many: list[Any] = list(noise_images(2, channels=5))
    with pytest.raises(UserError, match="image 0 has 5 channels, and PNG holds 1 or 3"):
        pack(source_of(many[:1]), tmp_path / "many", PackOptions())


def test_what_cannot_be_read_is_left_out_and_too_much_of_it_packs_nothing(tmp_path: Path) -> None:
    source = mixed(20)

    def read(index: int) -> Any:
        if index in (3, 8):
            raise DamagedImage("it is gone")
        return source.read(index) if index != 5 else b"no image, but bytes"

    holed = Source("test", "memory", source.names, read, source.evidence, source.labels, source.class_names)
    with pytest.raises(
        UserError, match=r"2 of 20 images could not be read.*max_damaged_share=0\.05.*nothing was packed"
    ):
        pack(holed, tmp_path / "out", PackOptions(max_damaged_share=0.05))
    assert list(tmp_path.iterdir()) == []
    left_out = pack(holed, tmp_path / "out", PackOptions(max_damaged_share=0.1))
    assert sorted(left_out) == [("class 0/3.png", "it is gone"), ("class 2/8.png", "it is gone")]
    shards = open_source(str(tmp_path / "out"))
    assert len(shards) == 18
    assert b"no image, but bytes" in [shards.read(index) for index in range(18)]


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    for out in (tmp_path / "taken", tmp_path / "taken/file"):
        with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
            pack(mixed(4), out, PackOptions())

    def fail(done: int) -> None:
        raise KeyboardInterrupt

    for layout in ("tar", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            pack(mixed(4), tmp_path / "new", PackOptions(layout=layout), on_progress=fail)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    (tmp_path / "new").mkdir()
    pack(mixed(4), tmp_path / "new", PackOptions())
    assert len(open_source(str(tmp_path / "new"))) == 4
