"""Parquet files with images: column layouts, splits by file name, class names, and reading by row group."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ft.data import tables
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.source import open_source
from ssl_ft.data.targets import TargetColumns
from ssl_ft.errors import UserError


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), shade).save(stream, "PNG")
    return stream.getvalue()


def write(
    target: Path, count: int = 3, *, start: int = 0, metadata: dict[str, str] | None = None, **columns: Any
) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    images = columns.pop("image", [png(start + row) for row in range(count)])
    table = pa.table({"image": images, **columns})
    pq.write_table(table.replace_schema_metadata(metadata), target, row_group_size=2)
    return target


def shade(raw: object) -> int:
    assert isinstance(raw, bytes)
    return int(decode(raw)[0, 0, 0])


def test_one_file(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "all.parquet", label=[5, 9, 5], path=["x/1", "x/2", "y/1"])))
    assert source.kind == "parquet"
    assert list(source.names) == ["x/1", "x/2", "y/1"]
    assert source.class_names == ("5", "9")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0]
    assert source.splits is None
    assert [shade(source.read(row)) for row in range(3)] == [0, 1, 2]


def test_a_file_called_train_is_a_split_only_in_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet")
    assert open_source(str(tmp_path / "train.parquet")).splits is None
    splits = open_source(str(tmp_path)).splits
    assert splits is not None
    assert splits.tolist() == ["train"] * 3


def test_shards_give_splits_and_clashing_paths_give_way_to_row_names(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", path=["1", "2", "3"], label=[0, 1, 0])
    write(tmp_path / "train-00001-of-00002.parquet", start=10, path=["4", "5", "6"], label=[0, 1, 0])
    write(tmp_path / "validation.parquet", 1, start=20, path=["1"], label=[1])
    source = open_source(str(tmp_path))
    assert source.splits is not None
    assert source.splits.tolist() == ["train"] * 6 + ["val"]
    assert source.names[3] == "train-00001-of-00002.parquet#0"
    assert [shade(source.read(row)) for row in (0, 3, 6)] == [0, 10, 20]


def test_struct_images_and_hub_class_names(tmp_path: Path) -> None:
    images = [{"bytes": png(row), "path": f"{row}.png"} for row in range(3)]
    features = {"info": {"features": {"label": {"names": ["cat", "ant"], "_type": "ClassLabel"}}}}
    path = write(tmp_path / "x.parquet", image=images, label=[1, 0, 1], metadata={"huggingface": json.dumps(features)})
    source = open_source(str(path))
    assert list(source.names) == ["0.png", "1.png", "2.png"]
    assert source.class_names == ("cat", "ant")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    assert shade(source.read(2)) == 2


def test_class_names_from_metadata_close_gaps(tmp_path: Path) -> None:
    names = json.dumps(["zero", "one", "two"])
    source = open_source(str(write(tmp_path / "x.parquet", label=[2, 0, -1], metadata={"label_names": names})))
    assert source.class_names == ("zero", "two")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, -1]
    words = open_source(str(write(tmp_path / "y.parquet", label_name=["b", "a", None])))
    assert words.class_names == ("a", "b")
    assert words.labels is not None
    assert words.labels.tolist() == [1, 0, -1]


def test_split_column(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "x.parquet", split=["train", "valid", "extra"])))
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "val", "extra"]


def test_missing_image_is_found_when_decoded(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "x.parquet", image=[png(0), None])))
    raw = source.read(1)
    assert raw == b""
    with pytest.raises(DamagedImage, match="empty"):
        decode(raw)


def test_large_files_are_read_by_row_group_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", 60, label=list(range(60)))
    held = open_source(str(path))
    monkeypatch.setattr(tables, "HELD_BYTES", 0)
    monkeypatch.setattr(tables, "_CACHED_GROUPS", 2)
    source = open_source(str(path))
    assert any("one row group at a time" in note for note in source.notes)
    order = np.random.default_rng(0).integers(0, 60, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [shade(raw) for raw in pool.map(source.read, order)] == order
    assert all(held.read(row) == source.read(row) for row in range(60))


def test_fingerprint_sees_content_and_sampling_still_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = write(tmp_path / "1/x.parquet"), write(tmp_path / "2/x.parquet", start=1)
    same = write(tmp_path / "3/x.parquet")
    assert open_source(str(one)).fingerprint() == open_source(str(same)).fingerprint()
    assert open_source(str(one)).fingerprint() != open_source(str(two)).fingerprint()
    monkeypatch.setattr("ssl_ft.data.listing.FINGERPRINT_BYTES", 20)
    assert open_source(str(one)).fingerprint() == open_source(str(same)).fingerprint()


def spoil(path: Path, column: int, *, group: int = 0) -> None:
    """Overwrite the bytes of a column's chunk, which header and footer say nothing of."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_a_damaged_column_is_a_sentence_on_opening(tmp_path: Path, column: int) -> None:
    path = write(tmp_path / "x.parquet", label=[1, 2, 3], path=["a", "b", "c"], split=["train", "val", "test"])
    spoil(path, column)
    with pytest.raises(UserError, match=r"x\.parquet cannot be read as Parquet: .* Write it again"):
        open_source(str(path))


def test_a_damaged_target_or_manifest_is_a_sentence_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", score=[1.0, 2.0, 3.0])
    spoil(path, 1)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        tables.target_values(path, TargetColumns("regression", ("score",)))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        tables.parquet_columns(path, ["score"])


def test_a_damaged_row_group_of_a_large_file_is_damaged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", 6)
    spoil(path, 0, group=1)
    monkeypatch.setattr(tables, "HELD_BYTES", 0)
    source = open_source(str(path))
    assert [shade(source.read(row)) for row in (0, 1, 4, 5)] == [0, 1, 4, 5]
    with pytest.raises(DamagedImage, match=r"row group 1 of x\.parquet cannot be read"):
        source.read(2)


def test_mistakes_are_explained(tmp_path: Path) -> None:
    write(tmp_path / "a/train.parquet")
    write(tmp_path / "a/more.parquet")
    with pytest.raises(UserError, match=r"some do not \(more.parquet\)"):
        open_source(str(tmp_path / "a"))
    with pytest.raises(UserError, match="holds no rows"):
        open_source(str(write(tmp_path / "b.parquet", image=pa.array([], pa.binary()))))
    with pytest.raises(UserError, match="`image` has type string; wanted are encoded image bytes"):
        open_source(str(write(tmp_path / "c.parquet", image=["x"])))
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="no column `image`; its columns are picture"):
        open_source(str(tmp_path / "d.parquet"), kind="parquet")
    with pytest.raises(UserError, match="no column `path`; its columns are picture"):
        open_source(str(tmp_path / "d.parquet"))
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match=r"no \.parquet files"):
        open_source(str(tmp_path / "e"), kind="parquet")
    Image.new("L", (2, 2)).save(tmp_path / "a/loose.png")
    with pytest.raises(UserError, match=r"Parquet files .* as well as images \(loose.png\)"):
        open_source(str(tmp_path / "a"))


def test_cifar10(shared_data: Path) -> None:
    source = open_source(str(shared_data / "cifar10"))
    assert len(source) == 60_000
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    assert source.splits is not None
    assert source.labels is not None
    assert int((source.splits == "test").sum()) == 10_000
    assert np.bincount(source.labels).tolist() == [6000] * 10
    raw = source.read(59_999)
    assert isinstance(raw, bytes)
    assert decode(raw).shape == (3, 32, 32)
    assert len(source.fingerprint()) == 64


def test_names_of_numbers_keep_their_order(shared_data: Path) -> None:
    source = open_source(str(shared_data / "fashion_mnist"))
    assert source.class_names[:2] == ("T-shirt/top", "Trouser")
