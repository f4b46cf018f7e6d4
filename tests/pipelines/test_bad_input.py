"""Bad input of every kind ends in a sentence that says what, where and what to do, exit code 2, and leaves nothing.

Each case is run as a user would. Mistakes in settings alone are in `test_cli.py` and `test_recipe.py`, those in model
files in `test_artifact.py`.
"""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from ssl_ft.checkpoint import read_values
from ssl_ft.cli import main
from tests.conftest import CHECKOUT
from tests.pipelines.conftest import TINY, Command, Outcome, write_photos

FINETUNE = ["finetune", "labels=4", "min_steps=2", "epochs=1", "threads=1", "device=cpu", "out=o"]
PROBE = ["probe", "labels=2", "draws=1", "baselines=false", "threads=1", "device=cpu", "out=o"]
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
NO_SPACE_IN_WORDS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def files_below(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(command: Command, words: list[str], *phrases: str) -> Outcome:
    """Run what must be refused: exit code 2, a sentence with these phrases, and not one file more or other."""
    before = files_below(Path.cwd())
    outcome = command(words)
    assert outcome.code == 2, outcome.err
    sentence = outcome.err[outcome.err.rindex("ssl-ft: ") :]
    assert [phrase for phrase in phrases if phrase not in sentence] == [], sentence
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert files_below(Path.cwd()) == before
    return outcome


def pretrain(data: Path | str, *more: str, out: str = "o") -> list[str]:
    return ["pretrain", f"data={data}", *TINY, *more, f"out={out}"]


def spoil(folder: Path) -> None:
    """Three of 24 photos: cut off, empty, and a text under a picture's name."""
    whole = (folder / "a/00.png").read_bytes()
    (folder / "a/00.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a/01.png").write_bytes(b"")
    (folder / "b/00.png").write_text("not a picture")


class TestDamagedFiles:
    def test_past_the_share_every_stage_stops_and_names_them(self, command, photos, tiny_runs):
        spoil(photos)
        share = "max_damaged_share=0.01"
        outcome = refused(command, pretrain(photos), str(photos), "could not be read", share, "ssl-ft index")
        assert "a/00.png (image file is truncated)" in outcome.err or "a/01.png (the file is empty)" in outcome.err
        names = ("a/01.png (the file is empty)", "b/00.png (the file holds text")
        refused(command, [*PROBE, f"encoder={tiny_runs}/pretrain", f"data={photos}"], share, *names)
        refused(command, [*FINETUNE, f"encoder={tiny_runs}/pretrain", f"data={photos}"], share, "cannot be read")
        refused(command, ["predict", str(photos), f"classifier={tiny_runs}/finetune"], share, *names, "nothing was")

    def test_below_the_share_pretraining_replaces_and_lists_them(self, command, photos):
        spoil(photos)
        assert command(pretrain(photos, "data.max_damaged_share=0.3", "data.test_share=0.01")).code == 0
        rows = rows_of(Path("o/damaged.csv"))
        assert {row["path"] for row in rows} <= {"a/00.png", "a/01.png", "b/00.png"}
        assert len(rows) >= 2
        assert all(row["reason"] and row["replacement"] != row["path"] for row in rows)

    def test_finetune_leaves_them_out_for_a_stand_in_would_bring_a_wrong_label(self, command, photos, tiny_runs):
        spoil(photos)
        data = ["data.max_damaged_share=0.9", f"data.path={photos}", "labels=all"]
        words = [word for word in FINETUNE if not word.startswith("labels")]
        assert command([*words, f"encoder={tiny_runs}/pretrain", *data, "val_share=0.1"]).code == 0
        rows = rows_of(Path("o/damaged.csv"))
        assert {row["path"] for row in rows} == {"a/00.png", "a/01.png", "b/00.png"}
        assert {row["replacement"] for row in rows} == {""}
        used = json.loads(Path("o/result.json").read_text())["labels_used"]
        assert sum(used.values()) == 21

    def test_a_class_that_is_all_damaged_is_named(self, command, photos, tiny_runs):
        for path in (photos / "b").iterdir():
            path.write_bytes(b"")
        words = [*FINETUNE, f"encoder={tiny_runs}/pretrain", f"data.path={photos}", "data.max_damaged_share=1"]
        refused(command, words, "all of class 'b'")

    def test_nothing_but_damage(self, command, photos, tiny_runs):
        for path in photos.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:60])  # the header is whole
        refused(command, pretrain(photos, "data.max_damaged_share=1"), str(photos), "no readable image")
        refused(
            command,
            ["predict", str(photos), f"classifier={tiny_runs}/finetune", "max_damaged_share=1"],
            "not one of 24 images can be read",
        )
        assert command(["index", str(photos), "out=o"]).code == 0
        assert len(rows_of(Path("o/damaged.csv"))) == 24


class TestOddImages:
    def test_every_mode_of_pixel_is_taken(self, command, tiny_runs, tmp_path):
        generator = np.random.default_rng(0)
        colour = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        (tmp_path / "kinds").mkdir()
        for mode, suffix in (
            ("RGB", "bmp"),
            ("CMYK", "jpg"),
            ("RGBA", "png"),
            ("P", "png"),
            ("LA", "webp"),
            ("1", "png"),
        ):
            colour.convert(mode).save(tmp_path / f"kinds/{mode}.{suffix}")
        deep = generator.integers(0, 65536, (16, 16), dtype=np.uint16)
        Image.fromarray(deep).save(tmp_path / "kinds/deep.png")
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(tmp_path / "kinds/dot.png")
        assert command(pretrain("kinds")).code == 0
        assert command(["predict", "kinds", f"classifier={tiny_runs}/finetune", "out=p.csv"]).code == 0
        assert len(rows_of(Path("p.csv"))) == 8

    def test_images_of_one_pixel(self, command, tmp_path):
        write_photos(tmp_path / "dots", size=1)
        refused(command, pretrain("dots"), "dots", "1 pixel", "larger images")
        refused(command, pretrain("dots", "size=32"), "dots", "1 pixel")

    def test_five_channels_into_a_model_of_three(self, command, tiny_runs):
        images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 5), dtype=np.uint8)
        np.save("five.npy", images)
        np.savez("five.npz", images=images, labels=np.arange(16) % 2)
        told = ("five.npy#0", "5 channels", "takes 3")
        refused(command, pretrain("five.npy", "data.channels=3"), *told)
        refused(command, ["predict", "five.npy", f"classifier={tiny_runs}/finetune"], *told)
        for stage in (PROBE, FINETUNE):
            refused(command, [*stage, f"encoder={tiny_runs}/pretrain", "data=five.npz"], "5 channels", "takes 3")
        assert command(pretrain("five.npy")).code == 0
        assert json.loads(Path("o/encoder/config.json").read_text())["contract"]["channels"] == 5

    def test_a_dry_run_of_index_opens_the_source(self, command, photos):
        refused(command, ["index", "/nope", "--dry-run"], "/nope")
        told = command(["index", str(photos), "--dry-run"])
        assert told.code == 0
        assert f"# {photos}: 24 images" in told.out
        assert not Path("runs").exists()

    def test_a_dry_run_finds_what_the_run_would_stumble_over(self, command, photos):
        words = ["pretrain", f"data={photos}", "encoder=convnext_atto", "size=8", "batch_size=8", "--dry-run"]
        refused(command, words, "convnext_atto", "8 x 8")


class TestSources:
    def test_nothing_there(self, command, photos, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts/a.txt").write_text("x")
        for stage in (pretrain("empty"), ["index", "empty"]):
            refused(command, stage, "no images in empty", "it is empty", ".png")
        refused(command, pretrain("texts"), "it holds 1 .txt")
        refused(command, pretrain("fotos"), "There is no fotos", "photos?")
        refused(command, pretrain("x" * 300), "255 are allowed")
        refused(command, pretrain("photos/a/00.png"), "single image")
        refused(command, pretrain("torchvision:CIFAR10@nowhere"), "nowhere", "download=true")

    def test_files_that_are_not_what_they_are_called(self, command):
        for name in ("junk.npy", "junk.parquet", "junk.csv"):
            Path(name).write_bytes(b"\xff\xfejunk")
            refused(command, pretrain(name), name)

    def test_one_class_can_be_pretrained_on_but_not_judged(self, command, tiny_runs, tmp_path):
        write_photos(tmp_path / "one", classes=["a"])
        Path("one.csv").write_text("path,label\n" + "".join(f"one/a/{i:02d}.png,x\n" for i in range(12)))
        for stage in (PROBE, FINETUNE):
            words = [*stage, f"encoder={tiny_runs}/pretrain"]
            refused(command, [*words, "data=one"], "no labels", "one class folder only (a)", "two classes")
            refused(command, [*words, "data=one.csv"], "one class (class 'x')", "two classes")
        assert command(pretrain("one.csv")).code == 0

    def test_labels_that_are_not_there(self, command, tiny_runs, photos):
        Path("bare.csv").write_text("path,split\nphotos/a/00.png,train\nphotos/b/00.png,train\n")
        Path("wrong.csv").write_text("file,klass\nphotos/a/00.png,1\n")
        words = [*PROBE, f"encoder={tiny_runs}/pretrain"]
        refused(command, [*words, "data=bare.csv"], "bare.csv", "no labels", "label column")
        refused(command, [*words, "data=wrong.csv"], "no column `path`", "file, klass")

    def test_classes_missing_from_a_split(self, command, tiny_runs, tmp_path):
        write_photos(tmp_path / "s/train", classes="abc", count=4)
        write_photos(tmp_path / "s/val", classes="ac", count=4)
        write_photos(tmp_path / "s/test", classes="ab", count=4)
        for stage in (PROBE, FINETUNE):
            words = [*stage, f"encoder={tiny_runs}/pretrain", "data.path=s"]
            refused(command, [*words, "data.val_split=val"], "'val'", "class 'b'", "leave")
            refused(command, [*words, "data.train_split=val"], "class 'b'", "training split 'val'")
            refused(command, [*words, "data.test_split=prüf"], "'prüf'", "test, train, val")
        assert command([*PROBE, f"encoder={tiny_runs}/pretrain", "data.path=s"]).code == 0

    def test_the_test_split_can_be_drawn_as_a_message_suggests(self, command, tmp_path):
        write_photos(tmp_path / "s/train", count=10)
        write_photos(tmp_path / "s/val", count=4, seed=1)
        assert command(pretrain("s", "data.test_split=null")).code == 0
        assert json.loads(Path("o/result.json").read_text())["data"][0]["num_images"] == 16

    def test_labels_with_gaps_keep_their_names(self, command, tiny_runs, photos):
        rows = [f"photos/{name}/{i:02d}.png,{label}" for name, label in (("a", 3), ("b", 70)) for i in range(12)]
        Path("gaps.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        assert command([*FINETUNE, f"encoder={tiny_runs}/pretrain", "data=gaps.csv"]).code == 0
        assert [row["class"] for row in rows_of(Path("o/per_class.csv"))] == ["3", "70"]
        assert json.loads(Path("o/classifier/config.json").read_text())["class_names"] == ["3", "70"]

    def test_budgets_and_batches_larger_than_the_data(self, command, tiny_runs, photos):
        told = ("class 'a'", "largest budget", "10 per class")
        for stage in ("probe", "finetune"):
            refused(command, [stage, f"encoder={tiny_runs}/pretrain", f"data={photos}", "labels=200", "out=o"], *told)
        words = ["pretrain", f"data={photos}", "encoder=test_resnet", "batch_size=512", "out=o"]
        refused(command, words, "batch_size=512", "20 images", "lower batch_size")

    def test_paths_beyond_ascii(self, command, tmp_path):
        data = write_photos(tmp_path / "Fotos 東京 é", classes=["Äpfel", "梨: süß"])
        outcome = command(pretrain(data, out="läufe/Ω"))
        assert outcome.code == 0, outcome.err
        assert outcome.out == "läufe/Ω\n"
        words = [word for word in FINETUNE if not word.startswith("out")]
        assert command([*words, "encoder=läufe/Ω", "out=ö"]).code == 0
        assert command(["predict", str(data), "classifier=ö", "out=é.csv"]).code == 0
        assert "梨: süß" in Path("é.csv").read_text(encoding="utf-8").splitlines()[0]
        deep = "/".join(["d" * 100] * 8)
        assert command(pretrain(data, out=deep)).code == 0


class TestEncoders:
    @pytest.mark.parametrize(
        ("settings", "phrases"),
        [
            (["encoder=resnet81"], ["'resnet81'", "resnet18"]),
            (["encoder=vit_tiny_patch16_224", "encoder.stem_stride=2"], ["encoder.stem_stride=2", "patch_size"]),
            (["encoder=vit_tiny_patch16_224", "encoder.patch_size=5"], ["size=16", "encoder.patch_size=5"]),
            (["encoder=vit_tiny_patch16_224", "size=40"], ["size=40", "16 pixels"]),
            (["encoder=convnext_atto", "size=8"], ["convnext_atto", "8 x 8", "another size="]),
            (["encoder=vit_tiny_patch16_224", "encoder.patch_size=4", "views.size=8"], ["8 x 8 pixels"]),
            (["optim.accumulate=2"], ["optim.accumulate=2", "batch norm", "ViT or ConvNeXt"]),
            (["encoder=swin_tiny_patch4_window7_224"], ["16 x 16", "img_size: 16"]),
            (["encoder.args={checkpoint_path: /etc/passwd}"], ["checkpoint_path"]),
            (["encoder.args={in_chans: 5}"], ["in_chans", "the channels of the data"]),
            (["encoder.args={no_such: 5}"], ["test_resnet", "no_such"]),
            (["encoder.pretrained=no.safetensors"], ["no.safetensors", "no such file"]),
            (["encoder.pretrained=."], ["encoder.pretrained=. holds no encoder", "give a finished pretrain run"]),
            (["objective=masked", "masked.patch=5"], ["size=16", "masked.patch=5"]),
            (["objective=masked", "masked.patch=1", "data.channels=1"], ["masked.patch=1", "normalise_target=false"]),
            (["encoder=test_vit", "encoder.patch_size=8", "objective=masked", "masked.decoder_width=33"], ["32"]),
            (["trackers=wandb"], ["wandb", "pip install"]),
            (["optim.rate=1e30"], ["finite", "optim.rate"]),
        ],
    )
    def test_what_cannot_be_built_or_trained_is_explained(self, command, photos, monkeypatch, settings, phrases):
        monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
        words = [word for word in pretrain(photos, *settings) if word != "encoder=test_resnet"]
        encoder = [] if settings[0].startswith("encoder=") else ["encoder=test_resnet"]
        refused(command, [*words, *encoder], *phrases)

    def test_images_smaller_than_the_stride_are_told(self, command, photos):
        outcome = command(pretrain(photos, "encoder.stem_stride=4"))
        assert outcome.code == 0
        assert "stride of 32 pixels is larger than the images (16)" in outcome.err
        assert "stride" in " ".join(json.loads(Path("o/manifest.json").read_text())["notes"])


class TestModels:
    def test_places_that_hold_no_encoder(self, command, tiny_runs):
        for stage in (PROBE, FINETUNE):
            refused(command, stage, "encoder= is missing", "pretrain")
            refused(command, [*stage, "encoder=nowhere"], "encoder=nowhere", "is not there")
            refused(command, [*stage, f"encoder={tiny_runs}/probe"], "holds no encoder", "pretrain")
            refused(command, [*stage, f"encoder={tiny_runs}/finetune/classifier"], "a classifier", "with data=")
        refused(command, ["predict", "x"], "classifier=")
        refused(command, ["predict", "x", f"classifier={tiny_runs}/pretrain"], "holds no classifier")

    def test_a_changed_byte_and_an_edited_config(self, command, runs):
        weights, config = runs / "pretrain/encoder/model.safetensors", runs / "pretrain/encoder/config.json"
        words = [*PROBE, f"encoder={runs}/pretrain"]
        text = config.read_text()
        config.write_text(text.replace('"mean": [\n   0.', '"mean": [\n   0.1'))
        assert config.read_text() != text
        refused(command, words, str(config), "edited")
        config.write_text(text)
        content = bytearray(weights.read_bytes())
        content[-10] ^= 1
        weights.write_bytes(bytes(content))
        refused(command, words, str(weights), "SHA-256")

    def test_an_encoder_without_its_run(self, command, runs):
        shutil.move(runs / "pretrain/encoder", runs / "lone")
        refused(command, [*PROBE, f"encoder={runs}/lone"], "lone", "data=")
        (runs / "manifest.json").write_text("{")
        refused(command, [*PROBE, f"encoder={runs}/lone"], "manifest.json", "data=")

    def test_an_unfinished_run(self, command, runs):
        shutil.rmtree(runs / "pretrain/encoder")
        (runs / "pretrain/result.json").unlink()
        refused(command, [*PROBE, f"encoder={runs}/pretrain"], "not ended")


class TestOut:
    def test_folders_that_are_not_ours_to_fill(self, command, photos, runs):
        refused(command, pretrain(photos, out=f"{photos}"), "not empty", "holds a, b")
        refused(command, ["index", str(photos), f"out={photos}"], "not empty")
        words = ["run", "pretrain.data=digits", *(f"pretrain.{word}" for word in TINY)]
        refused(command, [*words, f"out={photos}"], "holds more than runs (a, b)")
        refused(command, pretrain(photos, out=f"{runs}/probe"), "holds a probe run, not pretrain")
        refused(command, pretrain(photos, "seed=1", out=f"{runs}/pretrain"), "seed was 0, now 1")
        for content in (b'{"name": "web"}', b"[1]", b"{", b"\xff"):
            Path("web").mkdir(exist_ok=True)
            Path("web/manifest.json").write_bytes(content)
            refused(command, pretrain(photos, out="web"), "out=web", "not a run of ours")

    @pytest.mark.parametrize(
        "out", ["/proc/ssl_ft", "file/run", "file", "new/" + "x" * 300, "/".join(["y" * 200] * 25)]
    )
    def test_places_that_cannot_be_written(self, command, photos, tiny_runs, out):
        Path("file").write_text("x")
        told = "cannot be used as a run folder"
        refused(command, pretrain(photos, out=f"{out}"), told)
        refused(command, [*PROBE[:-1], f"encoder={tiny_runs}/pretrain", f"out={out}"], told)
        if out != "file":
            refused(command, ["predict", str(photos), f"classifier={tiny_runs}/finetune", f"out={out}/p.csv"], "p.csv")

    def test_places_for_a_table_or_page(self, command, photos, tiny_runs):
        words = ["predict", str(photos), f"classifier={tiny_runs}/finetune"]
        refused(command, [*words, f"out={photos}"], "is a folder", "predictions.csv")
        refused(command, [*words, "out=nowhere/p.csv"], "no folder nowhere")
        refused(command, ["report", f"{tiny_runs}/probe", f"out={photos}"], "cannot be written")
        refused(command, ["report", str(photos)], "No run in")
        refused(command, ["report"], "needs run folders")


class TestFullDisk:
    def test_from_the_start(self, command, photos, tiny_runs, monkeypatch):
        def fail(path, *args, **kwargs):
            path.touch()
            raise NO_SPACE

        monkeypatch.setattr(Path, "write_text", fail)
        told = ("No space left on device", "free some space")
        refused(command, pretrain(photos), *told)
        refused(command, [*PROBE, f"encoder={tiny_runs}/pretrain"], *told)
        refused(command, ["predict", str(photos), f"classifier={tiny_runs}/finetune"], *told)

    @pytest.mark.parametrize("error", [NO_SPACE, NO_SPACE_IN_WORDS])
    def test_at_the_first_checkpoint(self, command, photos, monkeypatch, error):
        monkeypatch.setattr("ssl_ft.checkpoint.save_file", self._half_written(error))
        refused(command, pretrain(photos), "out=o", "No space left on device", "free some space")

    def test_at_the_classifier(self, command, tiny_runs, monkeypatch):
        monkeypatch.setattr("ssl_ft.artifact.save_file", self._half_written(NO_SPACE_IN_WORDS))
        refused(command, [*FINETUNE, f"encoder={tiny_runs}/pretrain"], "No space left on device")

    def test_at_the_encoder_the_checkpoint_stays_and_the_same_command_ends_the_run(self, command, photos, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("ssl_ft.artifact.save_file", self._half_written(NO_SPACE_IN_WORDS))
            outcome = command(pretrain(photos))
        assert outcome.code == 2
        assert "No space left on device" in outcome.err
        assert "goes on from the last checkpoint" in outcome.err
        assert Path("o/checkpoints/last.safetensors").is_file()
        assert [p for p in Path("o").rglob("*") if "partial" in p.name or p.name == "encoder"] == []
        assert command(pretrain(photos)).code == 0
        assert Path("o/encoder/model.safetensors").is_file()

    @pytest.mark.parametrize("most", [1000, 100_000, 3_000_000])
    def test_files_that_really_cannot_grow(self, command, photos, most):
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            refused(command, pretrain(photos), "out=o", "File too large", "ulimit -f")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @pytest.mark.slow
    @pytest.mark.dist
    def test_on_two_ranks_only_the_sentence_is_heard(self, photos, tmp_path, capfd):
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            code = main(pretrain(photos, "devices=2", out=str(tmp_path / "o")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        err = capfd.readouterr().err
        assert code == 2, err
        assert "File too large" in err
        assert "Traceback" not in err
        assert not (tmp_path / "o").exists()

    @staticmethod
    def _half_written(error):
        def save(tensors, path, metadata=None):
            Path(path).write_bytes(b"half")
            raise error

        return save


class TestInterrupted:
    @pytest.mark.parametrize("content", ["cut", b"", b"\x80\x04K\x01.", "foreign"])
    def test_a_damaged_checkpoint_is_named_and_left_alone(self, command, runs, content):
        run = runs / "pretrain"
        last = run / "checkpoints/last.safetensors"
        shutil.rmtree(run / "encoder")
        (run / "result.json").unlink()
        if content == "foreign":
            save_file({"a": torch.zeros(1)}, last)
        else:
            last.write_bytes(last.read_bytes()[:999] if content == "cut" else content)
        before = last.read_bytes()
        # The data of the runs lay elsewhere, which is another setting: make it the same.
        manifest = run / "manifest.json"
        text = json.loads(manifest.read_text())
        text["settings"]["data"]["path"] = str(runs / "photos")
        manifest.write_text(json.dumps(text))
        outcome = command(pretrain(runs / "photos", out=str(run)))
        assert outcome.code == 2
        assert f"checkpoint {last}" in outcome.err
        assert last.read_bytes() == before
        assert not (run / "encoder").exists()
        assert not (run / "result.json").exists()

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_signals_save_and_say_how_to_go_on(self, tmp_path):
        processes = {}
        settings = ["duration=100000 steps", "save_every=100000 steps", "eval_every=100000 steps", "log_every=1"]
        for number in (signal.SIGINT, signal.SIGTERM):
            out = tmp_path / str(int(number))
            words = [w for w in pretrain("digits") if not w.startswith(("duration", "out"))]
            processes[number, out] = subprocess.Popen(
                [sys.executable, "-m", "ssl_ft", *words, *settings, f"out={out}"],
                cwd=CHECKOUT,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        for (number, out), process in processes.items():
            deadline = time.monotonic() + 240
            while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(number)
        for (number, out), process in processes.items():
            stdout, stderr = process.communicate(timeout=240)
            assert process.returncode == 128 + number, stderr
            assert "the same command goes on from there" in stderr
            assert "Traceback" not in stderr
            assert stdout == ""
            assert read_values(out / "checkpoints/last.safetensors")["step"] > 0
            assert not (out / "result.json").exists()
