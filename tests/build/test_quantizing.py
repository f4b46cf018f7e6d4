"""Quantizing from settings: the kind chosen and said, images read, training, the file, and what is refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_ft.artifact import ModelCard
from ssl_ft.build.compressing import Work
from ssl_ft.build.draft import with_head
from ssl_ft.build.labels import LabelSplit
from ssl_ft.build.quantizing import quantize
from ssl_ft.build.transfer import finetune_plan
from ssl_ft.compress.quantize_choice import needs_reduced_range
from ssl_ft.config import CompressSettings
from ssl_ft.errors import UserError
from ssl_ft.export.description import describe, read_description
from ssl_ft.export.folder import complete_folder
from ssl_ft.export.memory import peak_in_own_process
from ssl_ft.export.program_file import load_program
from ssl_ft.export.running import open_runner
from ssl_ft.runlog import RunFolder
from tests.compress import small_models as small
from tests.transfer.starts import CPU, images_of, settings_of, split_of, start_of

NUM_TEST = 12


def work_of(family: str, folder: Path, *, split: LabelSplit | None = None, **quantize: Any) -> Work:
    """What the stage would hand over: a classifier with random weights, 36 images, the last 12 of them for test."""
    start, images = start_of(family), images_of(folder)
    model = with_head(start.encoder, num_classes=3, seed=0).eval()
    card = ModelCard("classifier", start.spec, start.contract, images.source.class_names)
    read = images.source.read

    def read_no_test(index: int) -> Any:
        assert index < 36 - NUM_TEST, "a test image was read"
        return read(index)

    images = replace(images, source=replace(images.source, read=read_no_test), pool=np.arange(36 - NUM_TEST))
    settings = CompressSettings.model_validate({"method": "quantize", "quantize": quantize})
    run = RunFolder(folder / "run", stage="compress", settings=settings.model_dump(mode="json"))
    return Work(
        settings, settings_of("full"), model, card, images, split or split_of(18, 6, NUM_TEST), CPU, run,
        lambda: False, lambda step, row: None,
    )  # fmt: skip


def normalised(work: Work, count: int = 24) -> torch.Tensor:
    return work.card.contract.normalise(
        torch.from_numpy(work.images.inputs(np.arange(count), work.card.contract).pixels)
    )


def written(work: Work, made: Any, folder: Path) -> np.ndarray:
    """The file's outputs; it is alone in its folder."""
    folder.mkdir()
    path = made.write(folder)
    assert list(folder.iterdir()) == [path]
    assert path.name == "model.onnx"
    return small.run(path, normalised(work).numpy())


def outputs_of(work: Work) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(work.model(normalised(work)).numpy())


def test_a_vit_is_quantized_dynamically_and_told_why(tmp_path):
    work = work_of("vit", tmp_path)
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    made = quantize(work)
    assert not made.is_loadable
    assert (made.steps, made.num_val, made.damages) == (0, 0, ())
    assert small.distance(written(work, made, tmp_path / "exported"), outputs_of(work)) < 0.05
    notes = " ".join(work.run.notes)
    assert "test_vit is quantized dynamically: linear layers hold most of its weights" in notes
    assert "25 layers in 8 bits" in notes
    assert "in float32 stay patch_embed.proj" in notes
    assert "of the float32 file" in notes
    assert all(torch.equal(value, before[name]) for name, value in work.model.state_dict().items())


@pytest.mark.slow
def test_a_resnet_is_quantized_on_training_images_alone(tmp_path):
    work = work_of("resnet", tmp_path)
    made = quantize(work)
    # Weights of 7 bits, where the CPU wants them, are rounded twice as coarsely.
    most = 0.2 if needs_reduced_range() else 0.1
    assert small.distance(written(work, made, tmp_path / "exported"), outputs_of(work)) < most
    notes = " ".join(work.run.notes)
    assert "test_resnet is quantized statically: convolutions hold most" in notes
    assert "ranges are read from 24 training images, all that can be read; quantize.images=512 asks for more" in notes
    assert "16 layers in 8 bits, 100.0% of the layers' weights; no layer stays in float32" in notes


@pytest.mark.slow
def test_calibration_images_are_drawn_by_the_seed(tmp_path):
    files = []
    for number, seed in enumerate((0, 0, 1)):
        work = work_of("resnet", tmp_path / str(number), kind="static", images=3)
        work = replace(work, settings=work.settings.model_copy(update={"seed": seed}))
        files.append(quantize(work).write(tmp_path / str(number)).read_bytes())  # type: ignore[misc]
    assert files[0] == files[1]
    assert files[0] != files[2]


@pytest.mark.slow
def test_training_in_8_bits_learns_and_its_file_computes_the_same(tmp_path):
    work = work_of("resnet", tmp_path, kind="qat", rate_share=0.3)
    rows = []
    training = settings_of("full", min_steps=30)
    work = replace(work, training=training, on_row=lambda step, row: rows.append((step, row)))
    made = quantize(work)
    losses = [row["loss"] for _, row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert 0 < made.steps <= finetune_plan(training, num_train=18).num_steps
    assert made.num_val == 6
    outputs = written(work, made, tmp_path / "exported")
    # What was kept is what scored best on val, and the file scores the same there.
    val = work.split.val
    best = max(row["val_accuracy"] for _, row in rows if "val_accuracy" in row)
    assert (outputs[val].argmax(1) == work.images.labels[val]).mean() == pytest.approx(best)
    assert small.distance(outputs, outputs_of(work)) > 0.01
    assert "model.onnx has the ranges that training followed" in " ".join(work.run.notes)


@pytest.mark.parametrize("kind", ["dynamic", "weight_only"])
def test_a_resnet_has_next_to_nothing_for_these_kinds(tmp_path, kind):
    with pytest.raises(
        UserError, match=rf"quantize.kind={kind} quantizes linear layers alone: of test_resnet 1 of its"
    ):
        quantize(work_of("resnet", tmp_path, kind=kind))


def test_without_images_or_labels_or_packages_a_sentence_says_so(tmp_path, monkeypatch):
    work = work_of("resnet", tmp_path, kind="static")
    with pytest.raises(UserError, match=r"quantize\.images=512: memory has no training images"):
        quantize(replace(work, images=replace(work.images, pool=np.arange(0))))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match=r"^method=quantize needs the package onnxruntime; pip install '\.\[compress\]'$"
    ):
        quantize(work)


@pytest.mark.slow
def test_this_cpus_bits_are_told(tmp_path, monkeypatch):
    for number, (is_reduced, words) in enumerate(((True, "weights take 7 bits instead"), (False, "take 8 bits"))):
        monkeypatch.setattr("ssl_ft.build.quantizing.needs_reduced_range", lambda value=is_reduced: value)
        work = work_of("vit", tmp_path / str(number), kind="dynamic")
        made = quantize(work)
        assert words in " ".join(work.run.notes)
        path = made.write(tmp_path / str(number))  # type: ignore[misc]
        assert max(np.abs(w.astype(int)).max() for w in small.integer_weights(path)) == (64 if is_reduced else 127)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "qat"])
def test_the_other_engine_writes_a_torch_file(tmp_path, kind):
    work = work_of("resnet", tmp_path, kind=kind, engine="pt2e")
    made = quantize(work)
    path = made.write(tmp_path)  # type: ignore[misc]
    assert path.name == "model.pt2"
    outputs = load_program(path)(normalised(work)).detach().numpy()
    assert small.distance(outputs, outputs_of(work)) < (0.1 if kind == "static" else 1.0)
    complete_folder(tmp_path, describe(made.card, parent=""))
    pixels = (np.random.default_rng(0).random((3, *normalised(work).shape[1:])) * 255).astype(np.uint8)
    runner = open_runner(path, read_description(tmp_path), num_threads=1)
    assert runner.outputs(pixels).shape == (3, 3), "the audit can run it"
    assert peak_in_own_process(path, batch=2, num_threads=1) is not None, "and so can a process that made nothing"
    assert "model.pt2 needs torch, with torch.ao" in " ".join(work.run.notes)
