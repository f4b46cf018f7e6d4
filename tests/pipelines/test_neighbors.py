"""Stage neighbors: the table against one big matrix, the query itself marked, sheets show what they say, mistakes."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ft.data.source import open_source
from ssl_ft.evaluate import stream
from tests.pipelines.conftest import Command, write_photos
from tests.pipelines.test_bad_input import refused
from tests.pipelines.test_embed import FAST, expected_features


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_that_of_one_big_matrix(
    command: Command, tiny_runs: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MOST_IMAGES", 7)  # the pool passes by in several blocks
    asked = write_photos(tmp_path / "asked", classes=("x",), count=3, seed=1)
    (asked / "x/copy.png").write_bytes((photos / "b/05.png").read_bytes())
    (asked / "x/damaged.png").write_bytes(b"")
    words = ["neighbors", str(asked), f"pool={photos}", f"encoder={tiny_runs / 'pretrain'}", "k=5", *FAST]
    outcome = command([*words, "max_damaged_share=0.3", "out=n"])
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "n"
    assert "left out: x/damaged.png" in outcome.err
    assert "1 of the neighbours are the query itself" in outcome.err

    (asked / "x/damaged.png").unlink()
    encoder = tiny_runs / "pretrain/encoder"
    ours, theirs = (expected_features(encoder, folder).astype(np.float64) for folder in (asked, photos))
    cosines = (ours @ theirs.T) / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    rows, names, pool = rows_of(Path("n/neighbours.csv")), open_source(str(asked)).names, open_source(str(photos)).names
    assert [row["query"] for row in rows] == [name for name in names for _ in range(5)]
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5] * 4
    found = np.array([pool.index(row["neighbour"]) for row in rows]).reshape(4, 5)
    similarities = np.array([float(row["similarity"]) for row in rows]).reshape(4, 5)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, order, 1), atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines, found, 1), np.take_along_axis(cosines, order, 1), atol=2e-5)
    same = [(row["query"], row["neighbour"], row["rank"]) for row in rows if row["same_image"] == "true"]
    assert same == [("x/copy.png", "b/05.png", "1")]


def test_sheets_show_the_pictures_and_are_bounded(command: Command, tiny_runs: Path, photos: Path) -> None:
    words = ["neighbors", str(photos), f"pool={photos}", f"encoder={tiny_runs / 'pretrain'}", "k=3", *FAST, "out=n"]
    assert command([*words, "rows=5", "pages=3"]).code == 0
    assert sorted(path.name for path in Path("n").iterdir()) == [
        "neighbours-01.png", "neighbours-02.png", "neighbours-03.png", "neighbours.csv",
    ]  # fmt: skip
    assert len(rows_of(Path("n/neighbours.csv"))) == 24 * 3
    with Image.open("n/neighbours-01.png") as sheet:
        shown = np.asarray(sheet)
    with Image.open(photos / "a/00.png") as image:
        pixels = np.asarray(image).repeat(7, axis=0).repeat(7, axis=1)  # 16 px in a tile of 112
    windows = np.lib.stride_tricks.sliding_window_view(shown[:, 12:124], (112, 112, 3))[:, 0, 0]
    assert any(np.array_equal(window, pixels) for window in windows), "the first query stands on the left"
    # Each query finds itself; its frame is in the colour of a mark.
    assert (shown == (200, 60, 20)).all(axis=2).sum() > 5 * 4 * 112
    # The same command again leaves fewer pages, not those of before.
    assert command([*words, "pages=1"]).code == 0
    assert sorted(path.name for path in Path("n").iterdir()) == ["neighbours-01.png", "neighbours.csv"]


def test_a_table_alone(command: Command, tiny_runs: Path, photos: Path) -> None:
    words = ["neighbors", str(photos), f"pool={photos}", f"encoder={tiny_runs / 'finetune'}", "k=24", *FAST]
    assert command([*words, "out=n.parquet"]).code == 0
    table = pq.read_table("n.parquet")
    assert table.column_names == ["query", "rank", "neighbour", "similarity", "same_image"]
    assert table.num_rows == 24 * 24
    assert sum(table["same_image"].to_pylist()) == 24
    assert sorted(path.name for path in Path().iterdir()) == ["n.parquet", "photos"]


def test_mistakes(command: Command, tiny_runs: Path, photos: Path) -> None:
    words = ["neighbors", str(photos), f"encoder={tiny_runs / 'pretrain'}"]
    refused(command, words, "needs queries, a pool and an encoder")
    refused(command, [*words, f"pool={photos}", "k=25"], "k=25", "24 images")
    refused(command, [*words, f"pool={photos}", "out=photos"], "holds other things (a, b)", "choose another folder")
    refused(command, [*words, f"pool={photos}", "out=no/n"], "there is no folder no")
    refused(command, [*words, f"pool={photos}", "out=no/n.csv"], "there is no folder no")
    Path("file").write_text("x")
    refused(command, [*words, f"pool={photos}", "out=file"], "is a file", ".csv or .parquet")
    refused(command, [*words, "pool=nowhere"], "There is no nowhere")
    (photos / "a/03.png").write_bytes(b"")
    refused(command, [*words, f"pool={photos}"], "1 of 24 images cannot be read", "a/03.png")
