"""Multi-label and regression targets: columns of every kind of table, what is missing, and each mistake in them."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ft.data.listing import census
from ssl_ft.data.source import Source, open_source
from ssl_ft.data.targets import TargetColumns
from ssl_ft.errors import UserError

NAN = math.nan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        Image.new("L", (3, 3)).save(tmp_path / f"{name}.png")
    return tmp_path


def wanted(*names: str, task: str = "regression", separator: str | None = None) -> TargetColumns:
    return TargetColumns(task, names, separator)


def manifest(folder: Path, text: str, columns: TargetColumns, **more: str) -> Source:
    path = folder / "list.csv"
    path.write_text(text)
    return open_source(str(path), wanted=columns, **more)


def assert_targets(source: Source, expected: list[list[float]], names: tuple[str, ...]) -> None:
    assert source.targets is not None
    assert source.targets.dtype == np.float32
    np.testing.assert_array_equal(source.targets, np.array(expected, np.float32))
    assert source.target_names == names
    assert source.labels is None
    assert source.class_names == ()


def test_numbers_of_a_manifest_with_blanks_counted(folder: Path) -> None:
    # A column `label` that is a fraction is no mistake here: it is a target, or none of our business.
    text = "path,age,label,split\na.png,3.5,0.25,train\nb.png,,1,train\nc.png,nan,,test\nd.png,-2e3,7,test\n"
    source = manifest(folder, text, wanted("label", "age"))
    assert_targets(source, [[0.25, 3.5], [1, NAN], [NAN, NAN], [7, -2000]], ("label", "age"))
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "train", "test", "test"]
    assert any("1 of 4 images have no target at all" in note for note in source.notes)
    assert any("left out of loss and scores: age 1." in note for note in source.notes)
    assert "targets: label 3, age 2" in census(source)


def test_yes_and_no_of_a_manifest(folder: Path) -> None:
    text = "path,cat,dog\na.png,1,0\nb.png,True,false\nc.png, ,1.0\nd.png,0,0\n"
    source = manifest(folder, text, wanted("cat", "dog", task="multi_label"))
    assert_targets(source, [[1, 0], [1, 0], [NAN, 1], [0, 0]], ("cat", "dog"))


def test_names_in_one_column(folder: Path) -> None:
    text = "path,tags\na.png,dog;cat\nb.png,\nc.png,;\nd.png, cat ;\n"
    source = manifest(folder, text, wanted("tags", task="multi_label", separator=";"))
    # Blank is unlabelled; the separator alone says that there is none of the labels.
    assert_targets(source, [[1, 1], [NAN, NAN], [0, 0], [1, 0]], ("cat", "dog"))


def test_names_that_are_numbers_are_ordered_by_number(folder: Path) -> None:
    source = manifest(folder, "path,tags\na.png,10|9\nb.png,9\n", wanted("tags", task="multi_label", separator="|"))
    assert_targets(source, [[1, 1], [1, 0]], ("9", "10"))


def test_parquet_manifests_and_images(folder: Path) -> None:
    content = [(folder / f"{name}.png").read_bytes() for name in "abc"]
    names = [f"{name}.png" for name in "abc"]
    values = pa.array([1.5, None, NAN], pa.float64())
    pq.write_table(pa.table({"path": names, "height": values}), folder / "rows.parquet")
    source = open_source(str(folder / "rows.parquet"), wanted=wanted("height"))
    assert source.kind == "manifest"
    assert_targets(source, [[1.5], [NAN], [NAN]], ("height",))
    images = folder / "images"
    images.mkdir()
    tags = pa.array([["x", "y"], [], None], pa.list_(pa.string()))
    pq.write_table(pa.table({"image": content, "tags": tags, "is_red": [True, False, None]}), images / "train.parquet")
    pq.write_table(pa.table({"image": content[:1], "tags": [["z"]], "is_red": [True]}), images / "test.parquet")
    source = open_source(str(images), wanted=wanted("tags", task="multi_label", separator=";"))
    assert source.kind == "parquet"
    # Files come by name: test, then train.
    assert_targets(source, [[0, 0, 1], [1, 1, 0], [0, 0, 0], [NAN] * 3], ("x", "y", "z"))
    source = open_source(str(images), wanted=wanted("is_red", task="multi_label"))
    assert_targets(source, [[1], [1], [0], [NAN]], ("is_red",))


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(
        path, images=images, age=np.array([1, 2, NAN]), labels=np.array([0.5, 0, 1]), split=["train"] * 2 + ["test"]
    )
    source = open_source(str(path), wanted=wanted("age"))
    assert_targets(source, [[1], [2], [NAN]], ("age",))
    assert source.splits is not None
    np.save(tmp_path / "bare.npy", images)
    with pytest.raises(UserError, match=r"holds images alone; save them with their targets as a .npz"):
        open_source(str(tmp_path / "bare.npy"), wanted=wanted("age"))
    np.savez(path, images=images, age=np.zeros(2))
    with pytest.raises(UserError, match=r"`age` has shape \(2,\), but there are 3 images"):
        open_source(str(path), wanted=wanted("age"))
    np.savez(path, images=images)
    with pytest.raises(UserError, match=r"has no column 'age', which data.targets names; its columns are images"):
        open_source(str(path), wanted=wanted("age"))


def test_a_second_source_for_test_is_matched_by_name(folder: Path) -> None:
    (folder / "test.csv").write_text("path,tags\nc.png,bird\nd.png,\n")
    columns = wanted("tags", task="multi_label", separator=";")
    source = manifest(folder, "path,tags\na.png,cat\nb.png,dog\n", columns, test_location=str(folder / "test.csv"))
    assert_targets(source, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [NAN] * 3], ("cat", "dog", "bird"))
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "train", "test", "test"]


def test_subsets_and_fingerprints_follow_the_targets(folder: Path) -> None:
    source = manifest(folder, "path,age\na.png,1\nb.png,2\nc.png,3\n", wanted("age"))
    assert_targets(source.subset(np.array([2, 0])), [[3], [1]], ("age",))
    other = manifest(folder, "path,age\na.png,1\nb.png,2\nc.png,4\n", wanted("age"))
    renamed = manifest(folder, "path,size\na.png,1\nb.png,2\nc.png,3\n", wanted("size"))
    assert len({each.fingerprint() for each in (source, other, renamed)}) == 3
    assert (
        source.fingerprint() == manifest(folder, "path,age\na.png,1\nb.png,2\nc.png,3\n", wanted("age")).fingerprint()
    )


@pytest.mark.parametrize(
    ("header", "cell", "columns", "message"),
    [
        ("age", "tall", wanted("age"), r"list.csv, row 3, column 'age': 'tall' is no number, which .*regression holds"),
        ("age", "1,5", wanted("age"), "'1,5' is no number"),
        ("age", "inf", wanted("age"), "'inf' is not a finite number of float32"),
        ("age", "1e39", wanted("age"), "'1e39' is not a finite number"),
        ("cat", "2", wanted("cat", task="multi_label"), "row 3, column 'cat': '2' is neither 0 nor 1"),
        ("cat", "0.5", wanted("cat", task="multi_label"), "'0.5' is neither 0 nor 1"),
        ("cat", "a;b", wanted("cat", task="multi_label"), "for a column of names give data.separator="),
        ("t", "a;b;a", wanted("t", task="multi_label", separator=";"), "row 3, column 't': 'a' is named twice"),
        (
            "age",
            "1",
            wanted("size"),
            "list.csv has no column 'size', which data.targets names; its columns are path, x",
        ),
    ],
)
def test_mistakes_name_file_row_column_value_and_what_is_allowed(folder, header, cell, columns, message) -> None:
    text = f'path;x;{header}\na.png;;0\nb.png;;"{cell}"\n'
    with pytest.raises(UserError, match=message):
        manifest(folder, text, columns)


def test_columns_that_hold_nothing_or_are_there_twice(folder: Path) -> None:
    with pytest.raises(UserError, match=r"the column 'age' is blank in every row; leave it out of data.targets"):
        manifest(folder, "path,age\na.png,\nb.png,nan\n", wanted("age"))
    with pytest.raises(UserError, match="the column 'tags' names no label in any row"):
        manifest(folder, "path,tags\na.png,\nb.png,;\n", wanted("tags", task="multi_label", separator=";"))
    with pytest.raises(UserError, match="has 2 columns called 'age'; give each its own name"):
        manifest(folder, "path,age,age\na.png,1,2\n", wanted("age"))
    (folder / "list.csv").write_text("path,label,label\na.png,1,2\n")
    with pytest.raises(UserError, match="has 2 columns called 'label'"):
        open_source(str(folder / "list.csv"))
    table = pa.table([["a.png"], [1.0], [2.0]], names=["path", "age", "age"])
    pq.write_table(table, folder / "rows.parquet")
    with pytest.raises(UserError, match="has 2 columns called 'age'"):
        open_source(str(folder / "rows.parquet"), wanted=wanted("age"))


@pytest.mark.parametrize(
    ("names", "separator", "message"),
    [
        ((), None, "data.task=multi_label needs the columns to learn"),
        (("a", "b", "a"), None, "names the column 'a' twice"),
        (("path",), None, "names 'path', which says which image a row is"),
        (("a", "b"), ";", "goes with a single column of names, and data.targets has 2"),
    ],
)
def test_wishes_that_contradict_themselves(names: tuple[str, ...], separator: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TargetColumns("multi_label", names, separator)


def test_sources_without_columns_are_refused(folder: Path) -> None:
    for location, kind in ((str(folder), "auto"), ("digits", "auto"), (str(folder), "flat")):
        with pytest.raises(UserError, match=r"has no columns of targets, which data.targets asks for; name a CSV"):
            open_source(location, kind=kind, wanted=wanted("age"))


def test_a_folder_is_not_taken_for_a_missing_test_source(folder: Path) -> None:
    (folder / "other.csv").write_text("path,size\nc.png,1\n")
    with pytest.raises(UserError, match=r"other.csv has no column 'age'"):
        manifest(folder, "path,age\na.png,1\n", wanted("age"), test_location=str(folder / "other.csv"))
