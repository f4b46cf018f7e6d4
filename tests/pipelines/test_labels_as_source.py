"""Pretraining on turns and on labels: what is counted and written, which images take part, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.artifact import read_card
from tests.pipelines.conftest import Command, write_photos
from tests.pipelines.test_bad_input import pretrain, refused, rows_of


def result(run: str) -> dict[str, object]:
    return json.loads(Path(run, "result.json").read_text(encoding="utf-8"))


def array(path: str, *, labels: object = None, split: object = None, count: int = 24) -> str:
    """An .npz of noise."""
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    parts = {name: np.array(value) for name, value in (("labels", labels), ("split", split)) if value is not None}
    np.savez(path, images=images, **parts)
    return path


class TestSupervised:
    def test_the_labels_of_the_training_split_are_counted_and_test_stays_out(self, command: Command, photos: Path):
        assert command(pretrain(photos, "objective=supervised")).code == 0
        found = result("o")
        used = found["labels_used"]
        assert (used["train"], used["val"], used["test"], used["watch"]) == (20, 0, 0, 0)
        assert [(d["role"], d["num_images"]) for d in found["data"]] == [("pool", 20)]  # 2 of 12 of each class are test
        assert found["test_scored"] == 0
        card = Path("o/encoder/README.md").read_text(encoding="utf-8")
        assert "objective: supervised" in card
        assert "labels trained on: 20" in card
        assert Path("o/pictures/views.png").is_file()
        keys = {key for line in Path("o/metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
        assert {"cross_entropy", "train_accuracy"} <= keys

    def test_they_count_in_what_starts_from_its_weights(self, command: Command, photos: Path, tmp_path: Path):
        assert command(pretrain(photos, "objective=supervised")).code == 0
        first = Path("o").rename("first") / "encoder"
        words = pretrain(write_photos(tmp_path / "bare", classes=("x",), count=20, seed=3))
        done = command([*words, "encoder.pretrained=first"])
        assert done.code == 0, done.err
        found = result("o")
        assert (found["labels_used"]["earlier"], found["labels_used"]["train"]) == (20, 0)
        assert [(p["kind"], p["sha256"]) for p in found["parents"]] == [("encoder", read_card(first)[1])]
        assert "20 labels were used to train the model this starts from" in done.err
        assert read_card(Path("o/encoder"))[0].about["labels trained on"] == 20
        # The card next to a file may be another program's.
        (first / "config.json").write_text("{}")
        done = command([*words[:-1], "out=p", f"encoder.pretrained={first / 'model.safetensors'}"])
        assert done.code == 0, done.err
        assert "does not tell where they come from" in done.err
        assert (result("p")["parents"], result("p")["labels_used"]["earlier"]) == ([], 0)

    def test_a_named_test_split_and_images_without_label_take_no_part(self, command: Command):
        labels = ["a", "b"] * 8 + [""] * 4 + ["a", "b"] * 2
        data = array("x.npz", labels=labels, split=["train"] * 20 + ["test"] * 4)
        assert command(pretrain(data, "objective=supervised")).code == 0
        assert result("o")["labels_used"]["train"] == 16
        assert [(d["role"], d["num_images"]) for d in result("o")["data"]] == [("pool", 16)]

    def test_a_damaged_image_is_replaced_by_one_of_its_class(self, command: Command, tmp_path: Path):
        photos = write_photos(tmp_path / "p", count=20)
        for name in ("a/01.png", "a/05.png", "b/03.png"):
            (photos / name).write_bytes(b"")
        assert command(pretrain(photos, "objective=supervised", "data.max_damaged_share=0.3")).code == 0
        rows = rows_of(Path("o/damaged.csv"))
        assert rows
        assert all(row["path"][0] == row["replacement"][0] for row in rows)

    def test_it_is_refused_without_labels_to_tell_apart(self, command: Command, tmp_path: Path):
        words = ["objective=supervised"]
        refused(command, pretrain(array("x.npz"), *words), "x.npz has no labels", "two classes or more")
        refused(
            command,
            pretrain(array("z.npz", labels=["a"] * 24), *words),
            "has labels of one class",
            "choose an objective",
        )
        blank = array("y.npz", labels=["a"] * 20 + ["b"] * 4, split=["train"] * 20 + ["test"] * 4)
        refused(command, pretrain(blank, *words), "the pool of y.npz has no image of 'b'", "data.train_split")
        many = write_photos(tmp_path / "many", classes=tuple("cdefghijkl"), count=3)
        refused(command, pretrain(many, *words, "data.limit=8"), "has no image of", "raise data.limit")


class TestRotation:
    def test_it_is_trained_drawn_and_needs_no_label(self, command: Command):
        assert command(pretrain(array("x.npz"), "objective=rotation")).code == 0
        assert set(result("o")["labels_used"].values()) == {0}
        assert "labels trained on" not in Path("o/encoder/README.md").read_text(encoding="utf-8")
        assert Path("o/pictures/views.png").is_file()
        rows = [json.loads(line) for line in Path("o/metrics.jsonl").read_text().splitlines()]
        assert any("rotation_accuracy" in row for row in rows)

    @pytest.mark.parametrize(
        ("views", "named"),
        [
            ("views=aerial", "views.quarter_turn=0.5 and views.vertical_flip=0.5"),
            ("views.vertical_flip=0.1", "with views.vertical_flip=0.1:"),
        ],
    )
    def test_views_that_turn_are_refused(self, command: Command, photos: Path, views: str, named: str):
        refused(command, pretrain(photos, "objective=rotation", views), named, "no turn to be told")

    def test_turns_may_be_taken_out_of_a_recipe(self, command: Command, photos: Path):
        still = ["views=aerial", "views.quarter_turn=0", "views.vertical_flip=0"]
        assert command(pretrain(photos, "objective=rotation", *still)).code == 0


@pytest.mark.parametrize("objective", ["rotation", "supervised"])
def test_parts_of_a_batch_and_images_decoded_each_time_are_taken(command: Command, photos: Path, objective: str):
    words = [f"objective={objective}", "optim.accumulate=2", "data.cache=none"]
    assert command(pretrain(photos, *words)).code == 0
