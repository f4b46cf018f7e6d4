"""Stage export end to end on a tiny classifier: files proved and described, predict on them, and each refusal."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.artifact import save_model
from ssl_ft.build.predicting import columns_of
from ssl_ft.data.images import resize_center_crop
from ssl_ft.errors import UserError
from ssl_ft.export.standalone import read_image
from tests.export.works import make_model, write_data
from tests.pipelines.conftest import Outcome, run_command

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a classifier and the data it names, a folder of images of all kinds, and the classifier exported."""
    top = tmp_path_factory.mktemp("export")
    save_model(top / "run" / "classifier", *make_model())
    data = write_data(top / "data.npz").model_dump(mode="json")
    (top / "run" / "manifest.json").write_text(json.dumps({"settings": {"data": data}}))
    write_pictures(top / "images")
    outcome = run_command(["export", f"model={top / 'run'}", "check_images=9", "threads=1", f"out={top / 'out'}"])
    assert outcome.code == 0, outcome.err
    return top


def write_pictures(folder: Path) -> None:
    """Wide, tall, grey, transparent, turned, deep: what a standalone reader has to read as ours does."""
    generator = np.random.default_rng(5)
    (folder / "sub").mkdir(parents=True)

    def noise(height: int, width: int, *channels: int) -> np.ndarray:
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, *channels))
        return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(np.uint8)

    Image.fromarray(noise(50, 81, 3)).save(folder / "wide.png")
    Image.fromarray(noise(90, 47, 3)).save(folder / "tall.jpg", quality=90)
    Image.fromarray(noise(40, 40)).save(folder / "grey.png")
    Image.fromarray(noise(64, 51, 4)).save(folder / "sub" / "clear.png")
    Image.fromarray(noise(33, 60, 3)).convert("P").save(folder / "sub" / "palette.png")
    Image.fromarray(noise(48, 40).astype(np.uint16) * 200).save(folder / "deep.png")
    turned = Image.fromarray(noise(40, 70, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(noise(2, 131, 3)).save(folder / "strip.png")
    Image.fromarray(noise(300, 3)).save(folder / "post.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def test_one_format_that_fails_does_not_take_the_others_along(place, tmp_path, monkeypatch):
    def fails(*words: object, **named: object) -> None:
        raise UserError("no words for it")

    monkeypatch.setattr("ssl_ft.build.exporting.write_program", fails)
    words = [
        "export",
        f"model={place / 'run'}",
        "formats=[onnx,torch]",
        "check_images=9",
        "threads=1",
        f"out={tmp_path / 'o'}",
    ]
    done = run_command(words)
    assert done.code == 3, done.err
    assert "model.pt2 was not kept: no words for it" in done.err
    told = json.loads((tmp_path / "o" / "exported" / "model.json").read_text())
    assert [each["format"] for each in told["files"]] == ["onnx"]
    assert (tmp_path / "o" / "exported" / "model.onnx").is_file()


def refused(words: list[str], told: str) -> Outcome:
    outcome = run_command(words)
    assert outcome.code == 2, outcome.out + outcome.err
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    return outcome


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as lines:
        return list(csv.reader(lines))


def test_the_run_tells_what_was_checked(place: Path) -> None:
    result = json.loads((place / "out" / "result.json").read_text())
    rows = {row["name"]: row for row in result["metrics"]}
    assert (rows["top1_agreement"]["value"], rows["top1_agreement"]["n"]) == (1, 9)
    assert (rows["largest_deviation"]["split"], rows["largest_deviation"]["model"]) == ("train", "onnx")
    assert rows["largest_deviation"]["value"] < 1e-4
    assert (result["test_scored"], result["parents"][0]["kind"]) == (0, "classifier")
    content = json.loads((place / "out" / "exported" / "model.json").read_text())
    assert content["output_names"] == ["ant", "bee", "cat"]
    (file,) = content["files"]
    assert (file["name"], file["checked_on"], file["tolerance"]) == ("model.onnx", 9, 1e-4)
    assert content["parent_sha256"] == result["parents"][0]["sha256"]


def test_the_script_names_columns_once_as_predict_does(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place / "out" / "exported", tmp_path / "exported")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | {"output_names": ["label", "bee", "cat"]}))
    words = [sys.executable, str(folder / "predict.py"), str(place / "images"), str(tmp_path / "script.csv")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "script.csv")[0] == columns_of("classes", ["label", "bee", "cat"])


def test_labels_are_those_of_the_model(place: Path, tmp_path: Path) -> None:
    """The model, its file through the stage, and its file through the script that knows neither us nor torch."""
    share, exported = "max_damaged_share=0.2", place / "out" / "exported"
    for name, model in (("model", place / "run"), ("file", exported / "model.onnx"), ("folder", exported)):
        words = ["predict", str(place / "images"), f"classifier={model}", share, f"out={tmp_path / name}.csv"]
        outcome = run_command([*words, "device=cpu"])
        assert outcome.code == 0, outcome.err
    code = f"""
import runpy, sys
sys.modules["ssl_ft"] = sys.modules["torch"] = None
sys.argv = ["predict.py", {str(place / "images")!r}, {str(tmp_path / "script.csv")!r}]
runpy.run_path({str(exported / "predict.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    wanted = table(tmp_path / "model.csv")
    assert len(wanted) == 10
    for name in ("file", "folder", "script"):
        found = table(tmp_path / f"{name}.csv")
        assert [row[:2] for row in found] == [row[:2] for row in wanted]
        numbers = [np.array([row[2:] for row in rows[1:]], float) for rows in (found, wanted)]
        assert np.abs(numbers[0] - numbers[1]).max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 65535), (50_001, 2), (2, 65), (3, 40)])
def test_the_script_cuts_a_strip_as_ours_does_and_enlarges_no_more_of_it(tmp_path, monkeypatch, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "strip.png")
    ours = resize_center_crop(pixels[None], 16, interpolation="bilinear")
    asked, resize = list[tuple[int, int]](), Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *more: asked.append(size) or resize(self, size, *more)
    )
    theirs = read_image(tmp_path / "strip.png", channels=1, size=16, white_level=65535)
    np.testing.assert_array_equal(theirs, ours)
    assert max(asked[0]) <= 33 * 16


def test_a_file_that_deviates_is_not_kept(place: Path, tmp_path: Path) -> None:
    words = ["export", f"model={place / 'run'}", f"images={place / 'images'}", "tolerance=1e-12", "threads=1"]
    outcome = run_command([*words, f"out={tmp_path / 'out'}"])
    assert outcome.code == 3, outcome.err
    assert run_command([*words, f"out={tmp_path / 'out'}"]).code == 3  # finished, and still refused
    assert "more than tolerance=1e-12 allows, it was removed" in outcome.err
    assert [each.name for each in (tmp_path / "out" / "exported").iterdir()] == ["model.json"]
    assert (tmp_path / "out" / "result.json").is_file()


def test_mistakes_are_sentences(place: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'out'}"
    refused(["export", out], "model= is missing")
    refused(["export", f"model={place / 'images'}", out], "holds no classifier")
    refused(["export", f"model={place / 'run'}", "layout=nhwc", out], "layout=nhwc needs preprocess=inside")
    refused(["export", f"model={place / 'run'}", "formats=[onnx,onnx]", out], "names one twice")
    save_model(tmp_path / "lone" / "classifier", *make_model())
    refused(["export", f"model={tmp_path / 'lone'}", out], "give images to check the files on with images=")
    assert not (tmp_path / "out").exists()
    (tmp_path / "model.onnx").write_bytes(b"")
    refused(["predict", str(place / "images"), f"classifier={tmp_path / 'model.onnx'}"], "holds no model.json")


def test_a_plan_writes_nothing(place: Path, tmp_path: Path) -> None:
    outcome = run_command(["export", f"model={place / 'run'}", f"out={tmp_path / 'out'}", "--dry-run"])
    assert outcome.code == 0
    assert "exported/ with model.onnx" in outcome.out
    assert not (tmp_path / "out").exists()
