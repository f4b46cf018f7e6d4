"""Tables for users: what was put in comes out of CSV, Parquet and .npz, block by block, whole or not at all."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_ft.errors import UserError
from ssl_ft.outputs import FEATURE_ENDINGS, FeatureRows, FeatureWriter, check_place, write_rows

NAMES = ["a.png", "deeper/b ü.png", "c,d.png", "e\n.png", "f.png"]
FEATURES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * np.float32(1e-3)
LABELS, SPLITS = ["cat", "", "dog", "cat", ""], ["train", "train", "test", "test", "train"]


def write(out: Path, *, has_labels: bool = True) -> None:
    with FeatureWriter(out) as writer:
        for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
            labels, splits = (LABELS[part], SPLITS[part]) if has_labels else (None, None)
            writer.add(FeatureRows(NAMES[part], FEATURES[part], labels, splits))
    assert writer.num_rows == 5


def test_csv_gives_the_same_float32_back(tmp_path):
    write(tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "split", "feature_0", "feature_1", "feature_2"]
    assert [row[:3] for row in rows] == [list(texts) for texts in zip(NAMES, LABELS, SPLITS, strict=True)]
    assert np.array_equal(np.array([row[3:] for row in rows], np.float32), FEATURES)


def test_parquet_has_a_column_of_vectors(tmp_path):
    write(tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.field("features").type == pa.list_(pa.float32(), 3)
    assert table["path"].to_pylist() == NAMES
    assert table["label"].to_pylist() == [label or None for label in LABELS]
    assert table["split"].to_pylist() == SPLITS
    flat = table["features"].combine_chunks().flatten().to_numpy()  # the lines of the README
    assert np.array_equal(flat.reshape(len(table), -1), FEATURES)


def test_npz_loads_without_pickle(tmp_path):
    write(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"paths", "labels", "splits", "features"}
        assert arrays["features"].dtype == np.float32
        assert np.array_equal(arrays["features"], FEATURES)
        assert arrays["paths"].tolist() == NAMES
        assert arrays["labels"].tolist() == LABELS
        assert arrays["splits"].tolist() == SPLITS


@pytest.mark.parametrize("ending", FEATURE_ENDINGS)
def test_columns_that_are_not_known_are_not_there(tmp_path, ending):
    out = tmp_path / f"f{ending}"
    write(out, has_labels=False)
    if ending == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            assert set(arrays) == {"paths", "features"}
    elif ending == ".csv":
        assert out.read_text().splitlines()[0] == "path,feature_0,feature_1,feature_2"
    else:
        assert pq.read_schema(out).names == ["path", "features"]


@pytest.mark.parametrize("ending", FEATURE_ENDINGS)
def test_an_error_on_the_way_leaves_what_was_there(tmp_path, ending):
    out = tmp_path / f"f{ending}"
    out.write_text("before")

    def stumble() -> None:
        with FeatureWriter(out) as writer:
            writer.add(FeatureRows(NAMES[:2], FEATURES[:2]))
            raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        stumble()
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


ROWS = [["a.png", "cat", 0.75, 3, True], ["b.png", "dog", 1 / 3, 4, False]]
HEADER = ["path", "label", "share", "rank", "same"]


def test_rows_as_csv_and_as_parquet(tmp_path):
    write_rows(tmp_path / "r.csv", HEADER, ROWS)
    assert (tmp_path / "r.csv").read_text().split() == [
        "path,label,share,rank,same", "a.png,cat,0.750000,3,true", "b.png,dog,0.333333,4,false",
    ]  # fmt: skip
    write_rows(tmp_path / "r.parquet", HEADER, ROWS)
    assert pq.read_table(tmp_path / "r.parquet").to_pylist() == [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    assert pq.read_schema(tmp_path / "r.parquet").types[2:] == [pa.float64(), pa.int64(), pa.bool_()]


def test_parquet_takes_no_name_twice(tmp_path):
    with pytest.raises(UserError, match=r"two columns would be called 'path'.*rename that class"):
        write_rows(tmp_path / "r.parquet", ["path", "path"], [["a", 0.5]])
    assert list(tmp_path.iterdir()) == []
    write_rows(tmp_path / "r.csv", ["path", "path"], [["a", 0.5]])


def test_places_are_checked(tmp_path):
    assert check_place(tmp_path / "f.CSV", example="f.csv", endings=FEATURE_ENDINGS) == tmp_path / "f.CSV"
    with pytest.raises(UserError, match=r"is a folder; name the file to write, such as .*f\.csv"):
        check_place(tmp_path, example="f.csv")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; make it first"):
        check_place(tmp_path / "nowhere" / "f.csv", example="f.csv")
    with pytest.raises(UserError, match=r"'\.txt' is none of \.parquet, \.csv, \.npz; name it such as f\.csv"):
        check_place(tmp_path / "f.txt", example="f.csv", endings=FEATURE_ENDINGS)
    with pytest.raises(UserError, match="'none' is none of"):
        check_place(tmp_path / "f", example="f.csv", endings=FEATURE_ENDINGS)
