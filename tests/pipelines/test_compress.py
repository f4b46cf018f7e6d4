"""Stage compress as a command, by method=distill: what it leaves, says and counts, and what it refuses."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_ft.artifact import load_model
from ssl_ft.errors import UserError
from ssl_ft.result import Result
from tests.pipelines.conftest import write_photos

COMMON = ["threads=1", "device=cpu"]
SHORT = [*COMMON, "finetune.min_steps=2", "finetune.epochs=1", "finetune.batch_size=8"]
TRAINING = [*SHORT, "timing_seconds=0"]
STUDENT = ["distill.student=test_resnet", "distill.args={channels: [16, 16, 32, 32]}"]


def result_of(folder: str) -> Result:
    return Result.model_validate_json(Path(folder, "result.json").read_text(encoding="utf-8"))


def test_distilling_leaves_a_student_its_file_and_a_paired_gain(tiny_runs, command, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pool = write_photos(tmp_path / "pool", classes=("unknown",), count=12, seed=7)
    # A copy of a labelled photo among the pool must not be taught on.
    (pool / "unknown" / "copy.png").write_bytes((tiny_runs / "photos" / "a" / "00.png").read_bytes())
    words = ["compress", f"model={tiny_runs / 'finetune'}", *STUDENT, f"distill.pool={pool}", *TRAINING, "out=s"]
    done = command(words)
    assert done.code == 0, done.err
    assert done.out == "s\n"
    result, before = result_of("s"), result_of(tiny_runs / "finetune")
    pair = {"student", "student alone", "student over student alone"}
    assert {m.model for m in result.metrics} == {*pair, "exported", "parent", "exported against parent"}
    assert result.test_scored == 4
    (file,) = [m for m in result.metrics if (m.name, m.model) == ("accuracy", "exported")]
    (student,) = [m for m in result.metrics if (m.name, m.model) == ("accuracy", "student")]
    assert file.value == student.value
    shipped, student_digest = json.loads(Path("s/exported/model.json").read_text()), load_model(Path("s/classifier"))[2]
    assert shipped["parent_sha256"] == student_digest, "it was made from the student, not from its teacher"
    assert {"objective", "data", "licence", "software", "labels trained on"} <= set(shipped["about"])
    used, labels = result.labels_used, before.labels_used
    assert (used.train, used.val, used.test, used.earlier) == (labels.train, labels.val, labels.test, labels.earlier)
    roles = {use.role: use.fingerprint for use in before.data}
    assert all(roles[use.role] == use.fingerprint for use in result.data if use.role in ("train", "val", "test"))
    (pool_used,) = [use.num_images for use in result.data if use.role == "pool"]
    assert pool_used in (12, 13)  # where the photo is one of those outside the budget, nothing is to be left out
    told = json.loads(Path("s/manifest.json").read_text())["settings"]
    assert (told["labels"], told["draw"], told["data"]["path"]) == (4, 0, str(tiny_runs / "photos"))
    (parent,) = result.parents
    assert (parent.kind, parent.ancestors[0].kind) == ("classifier", "encoder")
    model, card, _ = load_model(Path("s/classifier"))
    assert card.class_names == ("a", "b")
    assert card.about["labels trained on"] == used.train + used.val
    session = onnxruntime.InferenceSession("s/exported/model.onnx")
    images = torch.randn(3, 3, card.contract.size, card.contract.size, generator=torch.Generator().manual_seed(0))
    (outputs,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(outputs, model(images).detach().numpy(), rtol=1e-3, atol=1e-4)
    assert command(words).code == 0, "a finished run is left alone"


def test_an_encoder_is_distilled_without_labels_and_can_be_probed(tiny_runs, command):
    words = ["compress", f"model={tiny_runs / 'pretrain'}", "distill.kind=features", *STUDENT, *SHORT, "out=e"]
    done = command(words)
    assert done.code == 0, done.err
    assert "no label was looked at" in done.err
    result = result_of("e")
    assert (result.test_scored, result.labels_used.train, result.labels_used.val) == (0, 0, 0)
    assert {m.name for m in result.metrics} == {"feature_cosine", "explained_variance", "parameters"}
    assert result.parents[0].kind == "encoder"
    probed = command(["probe", "encoder=e", "labels=2", "draws=1", "baselines=false", *COMMON, "out=p"])
    assert probed.code == 0, probed.err


@pytest.mark.slow
def test_a_chain_draws_the_labels_of_its_first_run_and_tells_its_line(runs, command):
    first = [
        "finetune",
        f"encoder={runs / 'pretrain'}",
        "labels=4",
        "seed=5",
        "val_share=0.5",
        "min_steps=2",
        "epochs=1",
    ]
    assert command([*first, *COMMON, "out=t"]).code == 0
    words = ["compress", *STUDENT, *TRAINING, "distill.baseline=false"]
    for model, out, seed in (("t", "s", 7), ("s", "u", 8)):
        kind = ["distill.kind=self", "distill.teacher=both"] if model == "s" else ["distill.kind=hard"]
        own = [word for word in words if model == "t" or word not in STUDENT]
        done = command([*own, *kind, f"model={model}", f"seed={seed}", f"out={out}"])
        assert done.code == 0, done.err
    prints = [{u.role: u.fingerprint for u in result_of(run).data} for run in ("t", "s", "u")]
    assert prints[0] == prints[1] == prints[2]
    last = result_of("u")
    assert (last.labels_used.train, last.labels_used.val, last.labels_used.earlier) == (4, 4, 0)
    assert [each.kind for each in last.parents[0].ancestors] == ["classifier", "encoder"]


def test_plan_names_model_student_and_images(tiny_runs, command):
    done = command(["compress", f"model={tiny_runs / 'finetune'}", *STUDENT, "--dry-run"])
    assert done.code == 0, done.err
    assert "# student: test_resnet, " in done.out
    assert "train, 2 val, 4 test images" in done.out
    done = command(["compress", f"model={tiny_runs / 'pretrain'}", *STUDENT, "distill.kind=features", "--dry-run"])
    assert "20 images without a look at labels" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune"], "# prune: channels go until 0.5 of the multiply-accumulates are left, with 300 steps of"),
        (
            ["prune", "prune.sparsity=0.3", "prune.steps=4", "finetune.min_steps=9", "finetune.epochs=1"],
            "# prune: 0.3 of each layer's channels go, in 4 rounds, with 9 steps of training in all",
        ),
        (
            ["prune", "prune.kind=weights", "prune.sparsity=0.9"],
            "# prune: 0.9 of the weights become zero, with 300",
        ),
        (["quantize"], "# quantize: static, ranges are read from up to 512 training images"),
        (["quantize", "quantize.kind=qat", "finetune.min_steps=9", "finetune.epochs=1"], "# quantize: qat, 9 steps of"),
    ],
)
def test_plan_says_what_becomes_of_the_model(tiny_runs, command, words, said):
    method, *more = words
    if method == "quantize" and find_spec("torchao") is None:
        pytest.skip("quantizing needs torchao")
    done = command(["compress", f"model={tiny_runs / 'finetune'}", f"method={method}", *more, "--dry-run"])
    assert done.code == 0, done.err
    assert said in done.out


def test_plan_refuses_what_the_stage_would(tiny_runs, command):
    words = ["compress", f"model={tiny_runs / 'finetune'}", "--dry-run"]
    refused = [(["method=prune", "prune.keep=layer9"], "prune.keep=layer9: this ResNet has no module of that name")]
    if find_spec("torchao") is not None:
        refused.append((["method=quantize", "quantize.kind=dynamic"], "kind=dynamic quantizes linear layers alone"))
    for more, said in refused:
        done = command([*words, *more])
        assert done.code == 2
        assert said in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "model= is missing: give a finished finetune run"),
        (["model=nowhere"], "model=nowhere is not there"),
        (["model={pretrain}"], "holds no classifier"),
        (["model=nowhere", "distill.kind=features"], "model=nowhere is not there"),
        (["model=w.safetensors", "distill.kind=features"], "a file of weights does not say its architecture"),
        (["model={finetune}", "distill.student=resnet18"], "more than the"),
        (["model={finetune}", "data={other}"], "has c, d to tell apart, the model a, b"),
        (
            ["model={finetune}", "data={ages}", "data.task=regression", "data.targets=age"],
            "the model is of task=classes, and",
        ),
        (["model={finetune}", "finetune.strategy=probe"], "finetune.strategy: compress sets these itself"),
        (["model={finetune}", "method=distill", "prune={}"], "prune: of method=prune, and method=distill is set"),
        (["model={finetune}", "distill.pool={photos}", "distill.student=test_resnet", "labels=all"], "all of its 20"),
        (["model={finetune}", "distill.mix=2"], "distill.mix"),
        (
            ["model={finetune}", "distill.args={in_chans: 1}"],
            "distill.args.in_chans is set by the channels of the data",
        ),
        (
            ["model={finetune}", "distill.student=test_vit", "distill.stem_stride=2"],
            "distill.stem_stride=2 is defined for",
        ),
        (
            ["model={finetune}", "method=quantize", "finetune.epochs=3"],
            "finetune.epochs: quantize.kind=auto trains nothing",
        ),
        (
            ["model={finetune}", "method=quantize", "quantize.kind=qat", "finetune.batch_norm=source"],
            "finetune.batch_norm: ",
        ),
        (
            ["model={pretrain}", "distill.kind=features", "timing_seconds=3"],
            "timing_seconds concerns labels or the audit",
        ),
        (
            ["model={finetune}", "method=prune", "prune.kind=units", "prune.heads=whole"],
            "prune.heads: of prune.kind=ch",
        ),
        (["model={finetune}", "method=prune", "prune.heads=whole"], "prune.heads=whole: a ResNet has no heads"),
    ],
)
def test_refuses(tiny_runs, command, tmp_path, words, said):
    other = write_photos(tmp_path / "other", classes=("c", "d"), count=6)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "ages.npz", images=images, age=np.arange(20.0))
    places = {name: tiny_runs / name for name in ("pretrain", "finetune", "photos")} | {
        "other": other,
        "ages": tmp_path / "ages.npz",
    }
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", str(place)) for word in words]
    done = command(["compress", *words, *COMMON, "out=s"])
    assert done.code == 2
    assert said in done.err
    assert not Path("s").exists()


@pytest.mark.parametrize("words", [["distill.student=test_resnet"], ["method=prune", "prune.sparsity=0.5"]])
def test_what_cannot_be_written_is_known_before_training(tiny_runs, command, monkeypatch, words):
    def fails(model: object, contract: object) -> None:
        raise UserError("this model cannot be written as ONNX")

    def trains(*words: object, **named: object) -> None:
        raise AssertionError("it was trained")

    for place in ("distilling", "pruning"):
        monkeypatch.setattr(f"ssl_ft.build.{place}.check_can_ship", fails)
    for place in ("distilling", "recovery"):
        monkeypatch.setattr(f"ssl_ft.build.{place}.train_classifier", trains)
    done = command(["compress", f"model={tiny_runs / 'finetune'}", *words, *TRAINING, "out=s"])
    assert done.code == 2
    assert "cannot be written as ONNX" in done.err
    assert not Path("s").exists()


def test_a_model_folder_alone_does_not_tell_its_labels(runs, command):
    moved = (runs / "finetune" / "classifier").rename(runs / "alone")
    done = command(["compress", f"model={moved}", *STUDENT, "out=s"])
    assert "does not lie in its run folder, so its data are not known" in done.err
    done = command(["compress", f"model={moved}", *STUDENT, f"data={runs / 'photos'}", "out=s"])
    assert "name the budget with labels=" in done.err
