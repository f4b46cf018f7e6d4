"""Stages shift, selftrain and adapt as commands: what they leave, what they say, and what they refuse."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.artifact import read_card
from ssl_ft.errors import UserError
from ssl_ft.result import LabelsUsed, Result
from tests.pipelines.conftest import write_photos

COMMON = ["threads=1", "device=cpu"]
QUICK = "permutations=199"  # the fewest; nine tests can stand with them
TRAINING = [*COMMON, "labels=6", "min_steps=2", "epochs=1", "batch_size=8"]


def result_of(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))


def value(result: Result, name: str, model: str) -> float:
    (found,) = [m.value for m in result.metrics if (m.name, m.model) == (name, model)]
    return found


def write_array(
    path: Path, *, count: int = 40, bright: int = 0, channels: int = 3, classes: tuple[str, ...] = ("a", "b")
) -> Path:
    """Noise images 16 x 16, raised in brightness; classes in turn."""
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256 - bright, (count, 16, 16, channels)) + bright
    labels = [classes[number % len(classes)] for number in range(count)]
    np.savez(path, images=images.astype(np.uint8), labels=np.array(labels))
    return path


class TestShift:
    def test_of_brighter_images_is_told_in_words_numbers_and_on_the_page(self, tiny_runs, command, tmp_path):
        target = write_array(tmp_path / "bright.npz", bright=120)
        done = command(["shift", f"encoder={tiny_runs / 'pretrain'}", f"data={target}", *COMMON, QUICK, "out=s"])
        assert done.code == 0, done.err
        assert done.out == "s\n"
        assert "shift: far" in done.err
        assert "target: 32 of 32 images looked at meet what the encoder takes" in done.err
        result, content = result_of(Path("s")), json.loads(Path("s/shift.json").read_text())
        assert value(result, "is_shifted", "all") == 1.0
        assert (result.test_scored, result.labels_used.train) == (0, 0)
        assert [use.role for use in result.data] == ["pool", "target"]
        (bright,) = [m for m in result.metrics if m.name == "brightness_difference"]
        assert 0.15 < bright.low < bright.value < bright.high < 0.35
        assert {row["space"] for row in content["tests"]} == {"encoder", "pixels", "statistics"}
        assert command(["report", "s", "out=page.html"]).code == 0
        page = Path("page.html").read_text()
        for words in ("Shift between pool and target", "the shift is far", "Expect little of the frozen", "Brightness"):
            assert words in page

    def test_of_images_like_the_pool_is_none(self, tiny_runs, command, tmp_path):
        target = write_array(tmp_path / "alike.npz")
        done = command(["shift", f"encoder={tiny_runs / 'pretrain'}", f"data={target}", *COMMON, QUICK, "out=s"])
        assert done.code == 0, done.err
        assert "shift: none" in done.err
        assert "can be used as it is" in json.loads(Path("s/shift.json").read_text())["advice"]

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("none", "data= is missing: name the target"),
            ("few", "has 16 images to compare, test images left out; a comparison needs 20"),
            ("bands", "images would be refused; the first is target.npz#"),
        ],
    )
    def test_refuses(self, tiny_runs, command, tmp_path, kind, words):
        more = {"few": {"count": 20}, "bands": {"channels": 5}}.get(kind, {})
        target = write_array(tmp_path / "target.npz", **more)
        data = [] if kind == "none" else [f"data={target}"]
        done = command(["shift", f"encoder={tiny_runs / 'pretrain'}", *data, *COMMON, "out=s"])
        assert done.code == 2
        assert words in done.err
        assert not Path("s").exists()

    def test_plan(self, tiny_runs, command, tmp_path):
        target = write_array(tmp_path / "t.npz")
        done = command(["shift", f"encoder={tiny_runs / 'pretrain'}", f"data={target}", "--dry-run"])
        assert "of 20 pool images and of 32 target images" in done.out


class TestSelftrain:
    def test_leaves_a_classifier_rounds_and_a_paired_gain(self, tiny_runs, command, tmp_path):
        pool = write_photos(tmp_path / "pool", classes=("unknown",), count=20, seed=7)
        photos = tiny_runs / "photos"
        words = ["selftrain", f"encoder={tiny_runs / 'pretrain'}", f"data={photos}", f"pool={pool}", *TRAINING]
        done = command([*words, "threshold=0.3", "rounds=2", "student_epochs=1", "out=s"])
        assert done.code == 0, done.err
        result = result_of(Path("s"))
        rounds = list(csv.DictReader(Path("s/rounds.csv").read_text().splitlines()))
        assert 1 <= len(rounds) <= 2
        pseudo = [int(row["pseudo: a"]) + int(row["pseudo: b"]) for row in rounds]
        assert all(0 < number <= 20 for number in pseudo)
        kept_student = any(row["kept"] == "True" for row in rounds)
        assert result.test_scored == 1 + kept_student
        assert {m.model for m in result.metrics} == {"student", "teacher", "student over teacher"}
        gain = value(result, "accuracy", "student") - value(result, "accuracy", "teacher")
        assert value(result, "accuracy_difference", "student over teacher") == pytest.approx(gain)
        assert result.labels_used.train + result.labels_used.val == 12
        assert Path("s/classifier/model.safetensors").is_file()
        predicted = command(["predict", str(pool), "classifier=s", "device=cpu"])
        assert predicted.code == 0, predicted.err

    def test_takes_labelled_and_test_images_out_of_the_pool(self, tiny_runs, command):
        # By default the pool is what the encoder saw: training photos, those of the budget among them.
        words = ["selftrain", f"encoder={tiny_runs / 'pretrain'}", *TRAINING, "threshold=1.0", "out=s"]
        done = command(words)
        assert done.code == 0, done.err
        assert "10 pool images are train images, pixel for pixel, and were left out" in done.err
        assert "2 pool images are val images" in done.err
        assert "no guess of the teacher was sure enough to be a label; kept: the teacher" in done.err
        assert value(result_of(Path("s")), "accuracy_difference", "student over teacher") == 0.0
        assert result_of(Path("s")).test_scored == 1

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["labels=1"], "labels=1 leaves no label for val"),
            (["labels=10"], "all of its 20 images are labelled or test images too"),
            (["strategy=probe"], "strategy=probe: a student learns by strong views"),
            (["balance=0.5"], "balance"),
            (["also=more/"], "also: further labelled sources are joined by finetune alone; leave it out"),
            (["tta=flip"], "tta: test is predicted from one view of each image here"),
        ],
    )
    def test_refuses(self, tiny_runs, command, words, said):
        given = [word for word in TRAINING if not word.startswith("labels=") or not words[0].startswith("labels=")]
        done = command(["selftrain", f"encoder={tiny_runs / 'pretrain'}", *given, *words, "out=s"])
        assert done.code == 2
        assert said in done.err
        assert not Path("s").exists()


class TestAdapt:
    @pytest.mark.parametrize("method", ["batch_norm", "coral", "adversarial", "continue"])
    def test_leaves_a_classifier_beside_that_of_the_source_alone(self, runs, command, tmp_path, method):
        target = write_array(tmp_path / "target.npz", count=60, bright=60)
        # Images enough that pretraining would be watched by the target's labels, were they looked at.
        manifest = runs / "pretrain" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"eval_images": 16', '"eval_images": 48'))
        words = ["adapt", f"encoder={runs / 'pretrain'}", f"target={target}", f"method={method}", *TRAINING]
        done = command([*words, *(["continued=2 steps"] if method == "continue" else []), "out=s"])
        assert done.code == 0, done.err
        assert done.out == "s\n"
        result = result_of(Path("s"))
        assert {m.model for m in result.metrics} == {method, "source alone", f"{method} over source alone"}
        assert value(result, "trained_parameters", method) == value(result, "trained_parameters", "source alone")
        assert result.test_scored == 2
        assert result.labels_used.test == 12
        assert result.labels_used.train + result.labels_used.val == 12
        assert [use.role for use in result.data] == ["train", "val", "target", "test"]
        assert Path("s/continued/result.json").is_file() == (method == "continue")
        if method == "continue":
            continued = result_of(Path("s/continued"))
            assert continued.labels_used == LabelsUsed()
            assert {m.name for m in continued.metrics} == {"embedding_std", "rank_me", "loss"}
            assert continued.metrics[0].n == 48
            assert [parent.sha256 for parent in continued.parents] == [read_card(runs / "pretrain" / "encoder")[1]]
            assert "objective=simclr, batch_size=8, optim.rate=" in done.err
        assert "chosen on val images of the source" in done.err

    def test_a_mistake_after_pretraining_went_on_leaves_what_it_learnt(self, runs, command, tmp_path, monkeypatch):
        def fails(*words: object, **named: object) -> None:
            raise UserError("its loss stopped being finite")

        monkeypatch.setattr("pipelines.adapt.train_pair", fails)
        target = write_array(tmp_path / "target.npz", count=60)
        words = ["adapt", f"encoder={runs / 'pretrain'}", f"target={target}", "method=continue", "continued=2 steps"]
        done = command([*words, *TRAINING, "out=s"])
        assert done.code == 2
        assert Path("s/continued/encoder/model.safetensors").is_file()

    def test_plan_says_what_pretraining_goes_on_with(self, tiny_runs, command, tmp_path):
        target = write_array(tmp_path / "target.npz")
        words = ["adapt", f"encoder={tiny_runs / 'pretrain'}", f"target={target}", *TRAINING, "--dry-run"]
        plain = command([*words, "method=coral"])
        assert "target: 32 images of" in plain.out
        assert "method=coral, no label looked at; 8 others are held out" in plain.out
        assert "pretraining goes on" not in plain.out
        goes_on = command([*words, "method=continue", "continued=3 steps"])
        assert "goes on for 3 steps with the settings of the first one, objective=simclr, batch_size=8" in goes_on.out
        none = command([w for w in words if not w.startswith("target=")])
        assert (none.code, "target= is missing" in none.err) == (2, True)

    def test_statistics_of_the_target_undo_a_change_of_contrast(self, command, tmp_path):
        """Stripes across or along, told apart at full contrast, then shown pale and bright."""
        generator = np.random.default_rng(0)

        def stripes(count: int) -> tuple[np.ndarray, np.ndarray]:
            labels = np.arange(count) % 2
            waves = np.sin(np.arange(16) * np.pi / 2 + generator.uniform(0, 6, (count, 1)))[:, :, None].repeat(16, 2)
            images = np.where(labels[:, None, None] == 1, waves.transpose(0, 2, 1), waves)
            images = 128 + 70 * images + generator.normal(0, 25, images.shape)
            return images.clip(0, 255)[..., None].repeat(3, 3), labels

        images, labels = stripes(120)
        np.savez("source.npz", images=images.astype(np.uint8), labels=labels)
        images, labels = stripes(300)
        np.savez("target.npz", images=(170 + 0.1 * (images - 128)).astype(np.uint8), labels=labels)
        tiny = ["encoder=test_resnet", "duration=2 steps", "batch_size=8", "eval_images=16", *COMMON]
        assert command(["pretrain", "data=source.npz", *tiny, "out=e"]).code == 0
        done = command([
            "adapt", "encoder=e", "target=target.npz", "target.test_share=0.5", "labels=all", "epochs=10",
            "min_steps=60", "optim.rate=1e-2", "encoder_rate_share=1", *COMMON, "out=s",
        ])  # fmt: skip
        assert done.code == 0, done.err
        (gain,) = [m for m in result_of(Path("s")).metrics if m.name == "accuracy_difference"]
        assert gain.low > 0.3, gain

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "target= is missing"),
            (["target=foreign.npz"], "its test images are also of class 'c', which"),
            (["target=bare.npy"], "has no labels"),
            (["target=foreign.npz", "method=coral", "strategy=probe"], "strategy=probe solves for a head in one go"),
            (["target=foreign.npz", "method=continue", "continued=soon"], "continued"),
            (["target=foreign.npz", "continued=2 steps"], "continued is of method=continue, and method=batch_norm"),
            (["target=few.npz", "method=continue"], "batch_size=8 is larger than the target: few.npz has 6 images"),
            (["target=foreign.npz", "target.task=regression", "target.targets=age"], "adapt judges classes alone"),
            (["target=foreign.npz", "tta=flip"], "tta: test is predicted from one view of each image here"),
        ],
    )
    def test_refuses(self, tiny_runs, command, words, said):
        write_array(Path("foreign.npz"), classes=("a", "b", "c"))
        write_array(Path("few.npz"), count=8)
        np.save("bare.npy", np.zeros((30, 16, 16, 3), np.uint8))
        done = command(["adapt", f"encoder={tiny_runs / 'pretrain'}", *words, *TRAINING, "out=s"])
        assert done.code == 2
        assert said in done.err
        assert not Path("s").exists()

    def test_refuses_batch_norm_where_there_is_none(self, command, tmp_path):
        photos, target = write_photos(tmp_path / "photos"), write_array(tmp_path / "target.npz")
        vit = ["encoder=test_vit", "duration=1 steps", "batch_size=8", "eval_images=16", "size=160", *COMMON]
        made = command(["pretrain", f"data={photos}", *vit, "out=e"])
        assert made.code == 0, made.err
        done = command(["adapt", "encoder=e", f"target={target}", *TRAINING, "out=s"])
        assert done.code == 2
        assert "method=batch_norm: test_vit has no batch norm" in done.err
