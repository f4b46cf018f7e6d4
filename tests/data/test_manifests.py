"""Manifests in CSV and Parquet: columns, blanks, gaps, and every mistake a hand-written table can hold."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ft.data.source import Source, open_source
from ssl_ft.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        Image.new("L", (3, 3)).save(tmp_path / name)
    return tmp_path


def manifest(folder: Path, text: str, *, encoding: str = "utf-8") -> Source:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return open_source(str(path))


def labels_of(source: Source) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


def test_full_manifest(folder: Path) -> None:
    source = manifest(folder, "path,label,split\na.png,dog,train\nsub/d.png,cat,Validation\nb.png,dog,test\n")
    assert source.kind == "manifest"
    assert list(source.names) == ["a.png", "sub/d.png", "b.png"]
    assert source.class_names == ("cat", "dog")
    assert labels_of(source) == [1, 0, 1]
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "val", "test"]
    assert source.read(1) == (folder / "sub/d.png").read_bytes()


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_byte_order_mark_and_quotes(folder: Path, separator: str) -> None:
    (folder / "odd,name.png").write_bytes((folder / "a.png").read_bytes())
    text = f'path{separator}label\r\n"odd,name.png"{separator}x\r\n\r\nb.png{separator}y\r\n'
    source = manifest(folder, text, encoding="utf-8-sig")
    assert list(source.names) == ["odd,name.png", "b.png"]
    assert source.class_names == ("x", "y")


def test_blank_labels_are_unlabelled(folder: Path) -> None:
    source = manifest(folder, "path,label\na.png,7\nb.png,\nc.png,10\nsub/d.png, \n")
    assert labels_of(source) == [0, -1, 1, -1]
    assert source.class_names == ("7", "10")
    assert any("2 of 4 images have no label" in note for note in source.notes)
    assert manifest(folder, "path,label\na.png,\nb.png,\n").labels is None
    assert manifest(folder, "path\na.png\n").labels is None


def test_minus_one_is_unlabelled_unless_it_could_be_a_class(folder: Path) -> None:
    source = manifest(folder, "path,label\na.png,-1\nb.png,3\nc.png,5\n")
    assert labels_of(source) == [-1, 0, 1]
    assert any("1 labels are -1" in note for note in source.notes)
    with pytest.raises(UserError, match="labels are -1 and 1, but -1 means unlabelled"):
        manifest(folder, "path,label\na.png,-1\nb.png,1\n")


def test_label_names_keep_the_order_of_the_labels(folder: Path) -> None:
    source = manifest(folder, "path,label,label_name\na.png,4,ant\nb.png,2,zebra\nc.png,4,ant\n")
    assert source.class_names == ("zebra", "ant")
    assert labels_of(source) == [1, 0, 1]
    with pytest.raises(UserError, match=r"label '4' goes with several values .*\(ant, bee\)"):
        manifest(folder, "path,label,label_name\na.png,4,ant\nb.png,4,bee\n")
    with pytest.raises(UserError, match=r"label_name 'ant' goes with several values .*\(2, 4\)"):
        manifest(folder, "path,label,label_name\na.png,4,ant\nb.png,2,ant\n")


def test_parquet_manifest_and_absolute_paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tables") / "list.parquet"
    names = [str(folder / name) for name in ("a.png", "b.png", "c.png")]
    pq.write_table(pa.table({"path": names, "label": [3.0, float("nan"), 1.0]}), path)
    source = open_source(str(path))
    assert source.kind == "manifest"
    assert source.class_names == ("1", "3")
    assert labels_of(source) == [1, -1, 0]
    assert source.read(0) == (folder / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "has no rows"),
        ("file,label\na.png,x\n", "no column `path`; its columns are file, label"),
        ("path,label\na.png\n", "line 2, has 1 fields where the header has 2"),
        ("path,label\na.png,x\na.png,y\n", r"names 1 files more than once \(first: a.png\)"),
        ("path\nsub\n", "row 1: sub is a folder"),
        ("path\nlist.csv\n", r"row 1: list.csv is not of a type read here"),
        ("path\n" + "".join(f"x{i}.png\n" for i in range(7)), "names 7 files that are not there: x0.png; x1.png; .*x4"),
        ("path\na.png\n" + "y" * 300 + ".png\n", "row 2: y+... is longer than this file system allows"),
        ("path,split\na.png,train\nb.png,\n", r"1 of 2 rows have no split \(first: row 2\)"),
        ('path\n"a.png\n', "not valid CSV"),
    ],
)
def test_mistakes_are_explained(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        manifest(folder, text)
    assert "x5.png" not in str(caught.value)


def test_fractions_as_labels_and_foreign_encodings(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png"], "label": [0.5]}), folder / "list.parquet")
    with pytest.raises(UserError, match=r"label 0\.5 is a fraction"):
        open_source(str(folder / "list.parquet"))
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte \d+\)"):
        manifest(folder, "path,label\na.png,größe\n", encoding="latin-1")
    (folder / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        open_source(str(folder / "bad.parquet"))


def test_flowers_manifest_names_what_it_misses(shared_data: Path) -> None:
    # its paths are relative to the folder `images` beside it
    with pytest.raises(UserError, match=r"Paths are read relative to .*flowers5, or absolute"):
        open_source(str(shared_data / "flowers5/manifest.csv"))
