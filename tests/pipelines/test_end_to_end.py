"""The whole way on digits in tiny: results that fit their schema, a page, predictions, and encoders in plain timm."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_ft.artifact import InputContract, ModelCard, load_model, save_model
from ssl_ft.cli import main
from ssl_ft.data.source import open_source
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.result import Metric, Result
from tests.pools import noise_images

STAGES = ("pretrain", "probe", "finetune-full", "finetune-scratch")
TINY = [
    "pretrain.encoder=test_resnet", "pretrain.encoder.stem_stride=1", "pretrain.duration=12 steps",
    "pretrain.batch_size=64", "pretrain.eval_images=200", "pretrain.eval_every=6 steps", "pretrain.threads=1",
    "probe.labels=[2, all]", "probe.draws=2", "probe.threads=1",
    "finetune.labels=5", "finetune.min_steps=8", "finetune.epochs=1", "finetune.threads=1",
]  # fmt: skip


def command(*words: str) -> list[str]:
    """Lines on stdout of a command that must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return out.getvalue().splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of every stage."""
    top = tmp_path_factory.mktemp("runs") / "all"
    assert command("run", *TINY, f"out={top}") == [str(top)]
    return top


def result_of(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_text(encoding="utf-8"))


def find(result: Result, **wanted: object) -> list[Metric]:
    return [m for m in result.metrics if all(getattr(m, key) == value for key, value in wanted.items())]


def test_every_stage_ends_with_a_result_that_fits_the_schema(run: Path) -> None:
    schema = json.loads("\n".join(command("schema")))
    for folder in (run, *(run / stage for stage in STAGES)):
        raw = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert set(raw) == set(schema["properties"])
        result = result_of(folder)
        assert result.run == str(folder)
        assert result.metrics
        assert result.seconds > 0
        assert result.peak_memory_mb > 100
        for metric in result.metrics:
            assert np.isfinite(metric.value), metric
            assert metric.low is None or metric.low <= metric.value <= metric.high, metric
    stages = {stage: result_of(run / stage) for stage in STAGES}
    assert [stages[stage].stage for stage in STAGES] == ["pretrain", "probe", "finetune", "finetune"]
    assert (run / "report.html").stat().st_size > 10_000


def test_parents_and_data_are_named_by_content(run: Path) -> None:
    pretrain, probe = result_of(run / "pretrain"), result_of(run / "probe")
    assert pretrain.parents == []
    digest = load_model(run / "pretrain" / "encoder")[2]
    for stage in STAGES[1:]:
        assert [(p.kind, p.sha256) for p in result_of(run / stage).parents] == [("encoder", digest)]
    source = open_source("digits")
    train = source.subset(np.flatnonzero(source.splits == "train"))
    assert [(d.role, d.num_images, d.fingerprint) for d in pretrain.data] == [
        ("pool", len(train), train.fingerprint())  # the test split is no part of the pool
    ]
    test = source.subset(np.flatnonzero(source.splits == "test"))
    for stage in (probe, result_of(run / "finetune-full"), result_of(run / "finetune-scratch")):
        assert [d.fingerprint for d in stage.data if d.role == "test"] == [test.fingerprint()]
    assert next((d.role, d.fingerprint) for d in probe.data) == ("train", train.fingerprint())


def test_labels_and_scorings_on_test_are_counted(run: Path) -> None:
    source = open_source("digits")
    num_train, num_test = (int((source.splits == name).sum()) for name in ("train", "test"))
    assert (num_train, num_test) == (1201, 596)
    pretrain, probe, full, scratch = (result_of(run / stage) for stage in STAGES)
    assert pretrain.test_scored == 0
    used = pretrain.labels_used
    assert (used.watch, used.train, used.val, used.test) == (200, 0, 0, 0)
    # Encoder, untrained encoder and pixels, each with two draws of 2 a class and one of all.
    assert probe.test_scored == 3 * (2 + 1) * 2  # each as a linear probe and as kNN
    assert (probe.labels_used.train, probe.labels_used.val, probe.labels_used.test) == (num_train, 0, num_test)
    for tuned in (full, scratch):
        assert tuned.test_scored == 1
        assert (tuned.labels_used.train, tuned.labels_used.val, tuned.labels_used.test) == (40, 10, num_test)
    assert result_of(run).test_scored == 18 + 1 + 1


def test_the_probe_has_a_row_for_every_model_and_budget(run: Path) -> None:
    probe = result_of(run / "probe")
    for model in ("encoder", "untrained", "pixels"):
        for budget in (2, None):
            (accuracy,) = find(probe, name="accuracy", model=model, labels_per_class=budget, split="test")
            assert accuracy.low is not None
            assert accuracy.n == 596
        assert len(find(probe, name="knn_accuracy", model=model, labels_per_class=None)) == 1
    (pixels,) = find(probe, name="accuracy", model="pixels", labels_per_class=None)
    assert pixels.value > 0.9  # logistic regression on raw digits; a mix-up of labels would show here
    assert {m.model for m in result_of(run).metrics} >= {"encoder", "untrained", "pixels", "full", "scratch"}


def test_a_finished_stage_says_where_it_is_and_does_no_more(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (run / stage).rglob("*")}
    assert command("run", *TINY, f"out={run}")[-1] == str(run)
    assert {path: path.stat().st_mtime_ns for stage in STAGES for path in (run / stage).rglob("*")} == before


@pytest.mark.parametrize("objective", ["simclr", "masked"])
def test_training_views_may_be_smaller_than_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    sides = set()

    def watched(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module.training:
            sides.add(inputs[0].shape[-1])

    with nn.modules.module.register_module_forward_pre_hook(watched):
        words = ["pretrain", "data=digits", f"objective={objective}", "size=12", "views.size=8", "encoder=test_resnet"]
        words += ["encoder.stem_stride=1", "duration=2 steps", "batch_size=32", "eval_images=64", "threads=1"]
        command(*words, f"out={tmp_path / 'o'}")
    assert max(sides) == 8
    _, card, _ = load_model(tmp_path / "o" / "encoder")
    assert card.contract.size == 12


def test_settings_that_fine_tuning_would_ignore_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("optim.ema=0.9", "optim.accumulate=2"):
        assert main(["finetune", f"encoder={run / 'pretrain'}", word, f"out={tmp_path / 'o'}"]) == 2
        assert f"{word.split('=')[0]} concern pretraining alone" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_predict_writes_class_names_and_probabilities_that_sum_to_one(run: Path, tmp_path: Path) -> None:
    source = open_source("digits")
    (tmp_path / "new" / "deeper").mkdir(parents=True)
    names = ["b.png", "a ü.png", "deeper/c.png"]
    for number, name in enumerate(names):
        Image.fromarray(np.asarray(source.read(number)).squeeze()).save(tmp_path / "new" / name)
    out = tmp_path / "labels.csv"
    classifier = run / "finetune-full"
    assert command("predict", str(tmp_path / "new"), f"classifier={classifier}", f"out={out}")[-1] == str(out)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    model, card, _ = load_model(classifier / "classifier")
    assert card.class_names == tuple("0123456789")
    assert sorted(row["path"] for row in rows) == sorted(names)
    for row in rows:
        shares = [float(row[name]) for name in card.class_names]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["label"] == card.class_names[int(np.argmax(shares))]
        assert float(row["probability"]) == max(shares)
        image = np.asarray(source.read(names.index(row["path"]))).reshape(1, 1, 8, 8)
        with torch.no_grad():
            expected = model(card.contract.normalise(torch.from_numpy(image))).softmax(1)[0]
        np.testing.assert_allclose(shares, expected.numpy(), atol=1e-5)


# Runs in a process in which `ssl_ft` cannot be imported: the card's own lines, then its input rule.
PLAIN = """
import json, os, re, sys
sys.modules["ssl_ft"] = None
import numpy as np
import torch
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    os.chdir(folder)
    (block,) = re.findall(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL)
    names = {}
    exec(block, names)
    contract = json.load(open("config.json", encoding="utf-8"))["contract"]
    mean, std = (np.array(contract[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = np.load("pixels.npy", allow_pickle=False).astype(np.float32) / 255
    with torch.no_grad():
        outputs = names["model"](torch.from_numpy((pixels - mean) / std))
    np.save("outputs.npy", outputs.numpy())
assert not any(name.startswith("ssl_ft.") for name in sys.modules)
"""
SMALL_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SMALL_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
SPECS = {
    "resnet-stem-1": EncoderSpec("resnet10t", 3, 32, stem_stride=1),
    "resnet-stem-2": EncoderSpec("resnet10t", 3, 32, stem_stride=2),
    "resnet18-stem-1": EncoderSpec("resnet18", 1, 24, stem_stride=1),
    "convnext-stem-2": EncoderSpec("convnext_atto", 5, 32, stem_stride=2, args=SMALL_CONVNEXT),
    "vit": EncoderSpec("vit_tiny_patch16_224", 3, 24, patch_size=4, args=SMALL_VIT),
}


def hand_over(folder: Path, spec: EncoderSpec) -> Path:
    """A model as a stage leaves it, with running statistics that are not those of a fresh one."""
    encoder = build_encoder(spec, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, value in encoder.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            centre = 0.0 if name.endswith("mean") else 0.9  # a large mean would leave nothing behind the ReLUs
            value.copy_(centre + 0.2 * torch.rand(value.shape, generator=generator))
    scale = tuple(0.2 + 0.1 * number for number in range(spec.channels))
    save_model(folder, encoder, ModelCard("encoder", spec, InputContract(spec.size, spec.channels, scale, scale)))
    return folder


@pytest.mark.slow
def test_cards_load_encoders_and_classifiers_in_plain_timm(run: Path, tmp_path: Path) -> None:
    folders = {name: hand_over(tmp_path / name, spec) for name, spec in SPECS.items()}
    for kind, stage in (("encoder", "pretrain"), ("classifier", "finetune-full")):
        model, card, _ = load_model(run / stage / kind)
        save_model(tmp_path / kind, model, card)  # beside the run, whose folders stay as they are
        assert (tmp_path / kind / "README.md").read_text() == (run / stage / kind / "README.md").read_text()
        folders[kind] = tmp_path / kind
    expected = {}
    for name, folder in folders.items():
        model, card, _ = load_model(folder)
        pixels = noise_images(4, side=card.contract.size, channels=card.contract.channels).transpose(0, 3, 1, 2)
        np.save(folder / "pixels.npy", pixels)
        with torch.no_grad():
            expected[name] = model(card.contract.normalise(torch.from_numpy(pixels.copy()))).numpy()
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, folders.values())], check=True, cwd=tmp_path, timeout=240)
    for name, folder in folders.items():
        outputs = np.load(folder / "outputs.npy", allow_pickle=False)
        np.testing.assert_allclose(outputs, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.ptp(outputs, axis=0).max() > 1e-3, f"{name} gives the same for every image"


def test_a_card_tells_what_a_reader_needs(run: Path) -> None:
    text = (run / "pretrain" / "encoder" / "README.md").read_text(encoding="utf-8")
    contract = load_model(run / "pretrain" / "encoder")[1].contract
    assert f"mean {list(contract.mean)} and std {list(contract.std)}" in text
    assert re.search(r"objective: simclr", text)
    classes = (run / "finetune-full" / "classifier" / "README.md").read_text(encoding="utf-8")
    assert "in this order: 0, 1, 2, 3" in classes
