"""Stage suggest: what is chosen is new, in order and repeatable; cold, with labels, with a classifier; mistakes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_ft.build.embedding import open_to_label
from ssl_ft.config import DataSettings
from ssl_ft.data.source import open_source
from ssl_ft.evaluate.probe import probe_budget, standardise
from ssl_ft.labelling.doubt import entropy_doubt
from tests.pipelines.conftest import Command, Outcome, write_photos
from tests.pipelines.test_bad_input import refused
from tests.pipelines.test_embed import FAST, expected_features


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Thirty photos without labels, six of which are those of a labelled folder."""
    folder = write_photos(tmp_path / "pool", classes=("x",), count=24, seed=5)
    for number, path in enumerate(sorted((write_photos(tmp_path / "known", count=3)).rglob("*.png"))):
        (folder / "x" / f"known {number}.png").write_bytes(path.read_bytes())
    (folder / "x").rename(folder / "all of it")
    return folder


def suggest(command: Command, pool: Path, encoder: Path, *more: str) -> tuple[list[dict[str, str]], Outcome]:
    outcome = command(["suggest", f"pool={pool}", f"encoder={encoder}", *FAST, *more])
    assert outcome.code == 0, outcome.err
    with Path(outcome.out.splitlines()[-1]).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), outcome


def test_from_nothing_coverage_is_all_there_is(command: Command, tiny_runs: Path, pool: Path) -> None:
    rows, outcome = suggest(command, pool, tiny_runs / "pretrain", "n=7")
    assert "nothing is labelled yet and no classifier is named: suggested by coverage alone" in outcome.err
    assert [list(row) for row in rows] == [["rank", "path"]] * 7
    assert [row["rank"] for row in rows] == list("1234567")
    assert len({row["path"] for row in rows}) == 7
    assert {row["path"] for row in rows} <= set(open_source(str(pool)).names)
    again, _ = suggest(command, pool, tiny_runs / "pretrain", "n=7", "by=coverage", "out=again.csv")
    assert again == rows
    others = [
        suggest(command, pool, tiny_runs / "pretrain", "n=7", word, "out=o.csv")[0]
        for word in ("seed=1", "coverage=kcenter")
    ]
    assert rows not in others
    with Image.open("suggest.png") as sheet:
        assert sheet.width > 7 * 112


def test_labelled_images_are_not_suggested_again_and_teach_the_probe(
    command: Command, tiny_runs: Path, pool: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    words = [f"labelled={known}", "by=uncertainty", "uncertainty=entropy", "n=24"]
    rows, outcome = suggest(command, pool, tiny_runs / "pretrain", *words)
    assert "6 images of the pool are labelled already" in outcome.err
    assert not any("known" in row["path"] for row in rows)
    encoder = tiny_runs / "pretrain/encoder"
    theirs, ours = expected_features(encoder, known), expected_features(encoder, pool)
    names = open_source(str(pool)).names
    new = np.array([number for number, name in enumerate(names) if "known" not in name])
    taught = open_to_label(DataSettings(path=str(pool)), DataSettings(path=str(known))).labelled
    assert taught is not None
    all_known = list(open_source(str(known)).names)
    theirs = theirs[[all_known.index(name) for name in taught.names]]
    mean, scale = standardise(np.concatenate([ours[new], theirs]))
    probe = probe_budget(theirs, taught.labels, num_classes=2, mean=mean, scale=scale, seed=0)
    doubts = dict(zip([names[n] for n in new], entropy_doubt(probe.predict_proba(ours[new])), strict=True))
    told = [float(row["doubt"]) for row in rows]
    np.testing.assert_allclose(told, [doubts[row["path"]] for row in rows], atol=1e-4)
    assert told == sorted(told, reverse=True)
    assert {row["guess"] for row in rows} <= {"a", "b"}
    both, _ = suggest(command, pool, tiny_runs / "pretrain", f"labelled={known}", "n=5", "out=both.csv")
    assert [list(row) for row in both] == [["rank", "path", "guess", "doubt"]] * 5


def test_a_classifier_may_be_asked_instead(command: Command, tiny_runs: Path, pool: Path) -> None:
    classifier = tiny_runs / "finetune"
    words = ["suggest", f"pool={pool}", f"classifier={classifier}", "by=uncertainty", "n=4", *FAST]
    assert command([*words, "out=s.parquet"]).code == 0
    rows = pq.read_table("s.parquet").to_pylist()
    assert command(["predict", str(pool), f"classifier={classifier}", "device=cpu", "out=p.parquet"]).code == 0
    margins = {row["path"]: 1 - abs(row["a"] - row["b"]) for row in pq.read_table("p.parquet").to_pylist()}
    expected = sorted(margins.values(), reverse=True)[:4]
    np.testing.assert_allclose([row["doubt"] for row in rows], expected, atol=1e-5)
    np.testing.assert_allclose([margins[row["path"]] for row in rows], expected, atol=1e-5)


def test_a_table_of_which_some_rows_are_labelled(command: Command, tiny_runs: Path, photos: Path) -> None:
    names = [f"photos/{name}" for name in open_source(str(photos)).names]
    labels = ["cat", "dog"] * 4 + [""] * 16
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    Path("table.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    rows, outcome = suggest(command, Path("table.csv"), tiny_runs / "pretrain", "n=16")
    assert sorted(row["path"] for row in rows) == names[8:]
    assert {row["guess"] for row in rows} <= {"cat", "dog"}
    assert "8 of 24 images have a label and are not suggested" in outcome.err


def test_copies_of_labelled_rows_of_the_same_table_are_not_suggested(photos: Path) -> None:
    """Those of its test part as well: labelled once more, they would teach what they are to score."""
    names = [f"photos/{name}" for name in open_source(str(photos)).names]
    for place, number in (("a", 0), ("b", 1)):
        shutil.copy(photos.parent / names[number], photos / place / "copy.png")
    rows = [f"{names[0]},cat,test", f"{names[1]},dog,train", f"{names[2]},cat,train"]
    rows += [f"{name},,train" for name in (*names[3:8], "photos/a/copy.png", "photos/b/copy.png")]
    (photos.parent / "table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    found = open_to_label(DataSettings(path=str(photos.parent / "table.csv")), None)
    assert sorted(found.candidates.names) == names[3:8]


def test_labels_that_will_score_teach_nothing(photos: Path) -> None:
    data = DataSettings(path=str(photos))
    found = open_to_label(data, data_of_noise(photos.parent))
    assert found.labelled is not None
    assert len(found.labelled) == 8
    (photos.parent / "few.csv").write_text("path,label\nphotos/a/00.png,a\nphotos/b/00.png,b\nphotos/a/01.png,\n")
    few = open_to_label(DataSettings(path=str(photos.parent / "few.csv")), None)
    assert few.labelled is not None
    assert (len(few.candidates), len(few.labelled)) == (1, 2), "of one label a class no stage holds out any"


def data_of_noise(folder: Path) -> DataSettings:
    """Ten labelled photos, of which every stage holds out two."""
    return DataSettings(path=str(write_photos(folder / "ten", count=5, seed=8)))


def test_the_test_part_is_never_suggested(command: Command, tiny_runs: Path, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_photos(tmp_path / "s" / split, count=5, seed=seed)
    rows, outcome = suggest(command, tmp_path / "s", tiny_runs / "pretrain", "n=10")
    assert "every image has a label; they are not looked at" in outcome.err
    assert all(row["path"].startswith("train/") for row in rows)
    refused(
        command,
        ["suggest", "pool=s", f"encoder={tiny_runs / 'pretrain'}", "n=11", *FAST],
        "n=11: there are 10 images to choose from",
    )


def test_damaged_images_are_left_out_and_said(command: Command, tiny_runs: Path, pool: Path) -> None:
    (pool / "all of it/03.png").write_bytes(b"")
    words = ["suggest", f"pool={pool}", f"encoder={tiny_runs / 'pretrain'}", *FAST, "n=29"]
    refused(command, words, "1 of 30 images cannot be read", "03.png")
    rows, outcome = suggest(command, pool, tiny_runs / "pretrain", "n=29", "max_damaged_share=0.1")
    assert "left out: " in outcome.err
    assert not any("03.png" in row["path"] for row in rows)


def test_features_that_would_not_fit_into_memory_are_refused_beforehand(command: Command, tiny_runs: Path) -> None:
    np.save("pool.npy", np.zeros((4000, 8, 8, 3), np.uint8))
    words = ["suggest", "pool=pool.npy", f"encoder={tiny_runs / 'pretrain'}", "n=3", *FAST]
    refused(
        command, [*words, "memory_mb=1"], "features of each of 4,000 images take 4 MiB", "more than memory_mb=1",
        "pool.limit=910", "raise memory_mb",
    )  # fmt: skip
    planned = command([*words, "memory_mb=1", "pool.limit=910", "--dry-run"])
    assert planned.code == 0, planned.err
    assert "3 of 910 images at pool.npy, by both; 0 labelled ones teach" in planned.out
    assert "memory: 1 MiB for features, at most memory_mb=1" in planned.out
    assert command([*words, "memory_mb=1", "--dry-run"]).code == 2


def test_mistakes(command: Command, tiny_runs: Path, pool: Path, tmp_path: Path) -> None:
    encoder = f"encoder={tiny_runs / 'pretrain'}"
    words = ["suggest", f"pool={pool}", encoder, "n=3", *FAST]
    refused(command, ["suggest", encoder], "suggest needs a pool and an encoder")
    refused(command, ["suggest", f"pool={pool}"], "suggest needs a pool and an encoder")
    refused(command, [*words, "by=uncertainty"], "by=uncertainty needs a classifier", "by=coverage")
    refused(command, [*words, f"labelled={pool}"], "labelled=", "has no labels", "leave labelled= out")
    refused(command, [*words, f"classifier={tiny_runs / 'pretrain'}"], "holds no classifier")
    refused(command, [*words, "out=s.txt"], "'.txt'", ".csv, .parquet")
    refused(command, [*words, "out=no/s.csv"], "no folder no")
    refused(command, [*words, "by=luck"], "by: ")
    one = write_photos(tmp_path / "one", classes=("a", "b"), count=1)
    (one / "b").rename(tmp_path / "gone")
    Path("one.csv").write_text("path,label\none/a/00.png,x\n")
    refused(command, [*words, "labelled=one.csv"], "all labels are of one class", "by=coverage")
    Path("test.csv").write_text("path,label,split\none/a/00.png,x,test\n")
    refused(command, [*words, "labelled=test.csv"], "all its labels are of the split 'test'")
    Path("split.csv").write_text("path,label,split\none/a/00.png,x,train\npool/all of it/01.png,,spare\n")
    refused(command, ["suggest", "pool=split.csv", encoder, *FAST], "no image of the split 'train' is without a label")
    refused(command, ["suggest", "pool=known", "labelled=known", encoder, *FAST], "every image is labelled already")
