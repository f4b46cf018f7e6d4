"""compress by method=prune on real labels of noise: zeros that last, targets that are met, models that go on."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ssl_ft.artifact import InputContract, ModelCard, load_model, save_model
from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.draft import Start
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.build.origins import load_origin, own_origin
from ssl_ft.build.pruning import prune
from ssl_ft.build.recovery import judged_copy
from ssl_ft.build.tasks import scale_of
from ssl_ft.build.transfer import train_classifier
from ssl_ft.compress.macs import count_macs
from ssl_ft.config import CompressSettings, DataSettings, FinetuneSettings
from ssl_ft.config.prune import PruneSettings
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.runlog import RunFolder
from ssl_ft.transfer.number_head import fold_scale

SIZE = 16
SPECS = {
    "resnet": EncoderSpec("test_resnet", 3, SIZE, stem_stride=2, args={"channels": [16, 16, 24, 32]}),
    "vit": EncoderSpec("test_vit", 3, SIZE, patch_size=4, args={"depth": 2, "embed_dim": 48, "num_heads": 3}),
}
CONTRACT = InputContract(SIZE, 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of writing it as ONNX takes seconds; that it is done is told in `tests/pipelines/test_compress.py`."""
    monkeypatch.setattr("ssl_ft.build.pruning.check_can_ship", lambda model, contract: None)


def source_of(targets: np.ndarray | None = None) -> Source:
    """24 images of noise with three classes, or with numbers."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
    labels = {"labels": np.arange(24) % 3, "class_names": ("a", "b", "c")}
    if targets is not None:
        labels = {"targets": targets, "target_names": ("x", "y"), "task": "regression"}
    return Source(
        kind="array", location="noise", names=[str(i) for i in range(24)], read=lambda i: pixels[i],
        evidence=lambda i: str(i).encode(), **labels,
    )  # fmt: skip


def work_of(name: str, folder: Path, *, source: Source | None = None, **settings: Any) -> Work:
    model = build_encoder(SPECS[name], seed=1)
    source = source or source_of()
    num_outputs = len(source.class_names or source.target_names)
    torch.manual_seed(0)
    model.reset_classifier(num_outputs)  # type: ignore[operator]
    card = ModelCard("classifier", SPECS[name], CONTRACT, source.class_names, {}, source.task, source.target_names)
    data = DataSettings(path="noise", workers=1)
    split = LabelSplit(np.arange(15), np.arange(15, 18), np.arange(18, 24))
    return Work(
        settings=CompressSettings.model_validate({"method": "prune", "prune": settings, "threads": 1}),
        training=FinetuneSettings.model_validate({"min_steps": 4, "epochs": 1, "batch_size": 5}),
        model=model.eval(),
        card=card,
        images=LabelledImages(source, data, np.arange(18), folder),
        split=split,
        device=torch.device("cpu"),
        run=RunFolder(folder / "run", stage="compress", settings={}),
        should_stop=lambda: False,
        on_row=lambda step, row: None,
    )


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    head = model.get_classifier()  # type: ignore[operator]
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    return [m.weight for m in model.modules() if isinstance(m, kinds) and m is not head]


@pytest.mark.parametrize(("name", "more"), [("resnet", {}), ("vit", {"steps": 2, "importance": "taylor"})])
def test_zeros_are_exact_and_outlast_training(tmp_path, name, more):
    work = work_of(name, tmp_path, kind="weights", sparsity=0.7, **more)
    before = {key: value.clone() for key, value in work.model.state_dict().items()}
    made = prune(work)
    weights = weights_of(made.model)
    count = sum(weight.numel() for weight in weights)
    assert sum(int((weight == 0).sum()) for weight in weights) == round(0.7 * count)
    moved = sum(not torch.equal(value, before[key]) for key, value in made.model.state_dict().items())
    assert moved > len(weights), "it was trained"
    assert all(torch.equal(value, before[key]) for key, value in work.model.state_dict().items())
    assert "as large and as fast as before" in made.card.about["pruned"]
    assert made.card.spec.cut is None


def carried_on(made: Compressed, work: Work, folder: Path) -> None:
    """Saved, loaded, exported, fine-tuned."""
    save_model(folder / "m", made.model, made.card)
    model, card, _ = load_model(folder / "m")
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), made.model(images))
    encoder, _ = load_origin(own_origin(folder / "m"))
    settings = FinetuneSettings.model_validate({"strategy": "layer_decay", "min_steps": 1, "epochs": 1})
    start = Start(encoder, card.spec, card.contract)
    trained = train_classifier(settings, start, work.images, work.split, device=work.device)
    assert trained.model(images).shape == (3, 3)


@pytest.mark.parametrize(("name", "rounds"), [pytest.param("resnet", 2, marks=pytest.mark.slow), ("vit", 1)])
def test_half_of_the_computing_goes_and_the_model_goes_on(tmp_path, name, rounds):
    if name == "resnet":
        pytest.importorskip("torch_pruning")
    work = work_of(name, tmp_path, macs=0.5, steps=rounds)
    made = prune(work)
    macs = [count_macs(model, channels=3, size=SIZE) for model in (made.model, work.model)]
    assert abs(macs[0] / macs[1] - 0.5) <= 0.01
    sizes = [sum(p.numel() for p in model.parameters()) for model in (made.model, work.model)]
    assert sizes[0] < 0.7 * sizes[1]
    carried_on(made, work, tmp_path)


def test_units_go_by_their_share(tmp_path):
    made = prune(work_of("vit", tmp_path, kind="units", sparsity=0.5, round_to=1))
    assert [block.mlp.fc1.out_features for block in made.model.blocks] == [72, 72]  # type: ignore[union-attr]


def test_a_regression_goes_on_in_the_users_units(tmp_path):
    """With nothing learnt in one step at next to no rate, the outputs are those of before."""
    targets = np.random.default_rng(0).normal(100, 5, (24, 2)).astype(np.float32)
    work = work_of("vit", tmp_path, source=source_of(targets), kind="units", sparsity=0.01, round_to=1)
    small = {"min_steps": 1, "epochs": 1, "optim": {"rate": 1e-9, "warmup": 0.0}}
    made = prune(Work(**{**vars(work), "training": FinetuneSettings.model_validate(small)}))
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.model(images), work.model(images), rtol=0.05, atol=0.05)


def taught_without_labels(folder: Path, labels: np.ndarray, **settings: Any) -> Compressed:
    """A pruned model that no val chose."""
    source = replace(source_of(), labels=labels)
    work = work_of("vit", folder, source=source, kind="units", sparsity=0.5, round_to=1, **settings)
    return prune(replace(work, split=LabelSplit(np.arange(18), np.arange(0), np.arange(18, 24))))


@pytest.mark.slow
@pytest.mark.parametrize("has_pool", [False, True])
def test_where_the_model_alone_teaches_no_label_counts(tmp_path, has_pool):
    labels = np.arange(24) % 3
    more = {"pool": {"path": str(tmp_path / "pool.npz"), "workers": 1}} if has_pool else {}
    np.savez(
        tmp_path / "pool.npz", images=np.random.default_rng(1).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    )
    states = {}
    for name, mix, own in (("a", 0.0, labels), ("b", 0.0, labels[::-1].copy()), ("c", 0.5, labels[::-1].copy())):
        (tmp_path / name).mkdir()
        made = taught_without_labels(tmp_path / name, own, mix=mix, **more)
        states[name] = made.model.state_dict()
    assert all(torch.equal(value, states["b"][key]) for key, value in states["a"].items())
    assert any(not torch.equal(value, states["c"][key]) for key, value in states["b"].items())


def test_each_round_trains_on_draws_of_its_own(tmp_path, monkeypatch):
    seeds = []

    def watched(settings: FinetuneSettings, *words: Any, **named: Any) -> Any:
        seeds.append(settings.seed)
        return train_classifier(settings, *words, **named)

    monkeypatch.setattr("ssl_ft.build.recovery.train_classifier", watched)
    made = prune(work_of("vit", tmp_path, kind="units", sparsity=0.5, round_to=1, steps=3))
    assert len(set(seeds)) == 3
    assert [block.mlp.fc1.out_features for block in made.model.blocks] == [72, 72]  # type: ignore[union-attr]


def test_a_target_is_met_in_the_last_round_though_the_first_takes_nothing(tmp_path):
    """A fiftieth of 144 neurons: 2.5 in the first round, 3 in the last, whose nearest multiple of 8 is all of them."""
    made = prune(work_of("vit", tmp_path, kind="units", sparsity=0.02, steps=2))
    assert [block.mlp.fc1.out_features for block in made.model.blocks] == [140, 140]  # type: ignore[union-attr]
    assert "in multiples of 4" in made.card.about["pruned"]


def test_targets_of_small_units_count_as_much_as_those_of_large_ones(tmp_path):
    """By taylor the same goes whether a target is told in grams or in tons."""
    targets = np.random.default_rng(0).normal(100, 5, (24, 2)).astype(np.float32)
    settings = PruneSettings(kind="units", sparsity=0.5, round_to=1, importance="taylor")
    scores = []
    for unit in (1, 1e6):
        work = work_of("vit", tmp_path, source=source_of((targets * [unit, 1]).astype(np.float32)))
        scale = scale_of(work.images, work.split.train)
        model = copy.deepcopy(work.model)
        fold_scale(model.head, scale)  # type: ignore[arg-type]
        judged = judged_copy(replace(work, model=model), model, settings)
        scores.append(judged.blocks[0].mlp.fc1.weight.grad)  # type: ignore[union-attr]
        torch.testing.assert_close(judged.head.weight, model.head.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-5)


def test_numbers_are_not_taught(tmp_path):
    targets = np.random.default_rng(0).normal(100, 5, (24, 2)).astype(np.float32)
    work = work_of("vit", tmp_path, source=source_of(targets), kind="units", sparsity=0.5, round_to=1, mix=0.1)
    with pytest.raises(UserError, match=r"prune.mix=0.1: the model teaches classes alone, and .* task=regression"):
        prune(work)


@pytest.mark.slow
def test_a_share_of_the_latency(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("torch_pruning")
    made = prune(work_of("resnet", tmp_path, latency=0.8))
    assert "of the time an image takes in ONNX Runtime (1 thread(s), batch of 1)" in made.card.about["pruned"]
    write_onnx(made.model, tmp_path / "m.onnx", channels=3, size=SIZE)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, SIZE, SIZE)
    (outputs,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(outputs, made.model(images).detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit", {"macs": 0.01}, r"prune.macs=0.01: no widths meet 0.01 of the model's to 2%; the nearest is 0"),
        ("vit", {"sparsity": 0.001}, r"prune.sparsity=0.001: no layer is wide enough to lose anything by it"),
        ("resnet", {"kind": "units", "sparsity": 0.5}, r"this ResNet has no MLP"),
        ("vit", {"keep": "blocks.9"}, r"prune.keep=blocks.9: this VisionTransformer has no module of that name; close"),
        ("vit", {"keep": ["patch_embed", "blocks"]}, r"no layer that can be cut"),
        ("vit", {"kind": "weights", "sparsity": 0.5, "keep": ["patch_embed", "blocks"]}, r"prune.keep leaves no"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, name, settings, message):
    with pytest.raises(UserError, match=message):
        prune(work_of(name, tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 0.5, "macs": 0.5}, r"prune.sparsity and prune.macs: each decides how much goes; give one"),
        ({"kind": "weights"}, r"prune.kind=weights needs prune.sparsity="),
        ({"kind": "weights", "macs": 0.5}, r"prune.macs: of whole channels or units, and prune.kind=weights is set"),
        ({"sparsity": 1.0}, r"less than 1"),
        ({"macs": 0}, r"greater than 0"),
        ({"steps": 0}, r"greater than or equal to 1"),
        ({"temperature": 2.0}, r"prune.temperature concerns what the model teaches, and with prune.mix=1 it"),
    ],
)
def test_settings_that_contradict_themselves(settings, message):
    with pytest.raises(ValidationError, match=message):
        CompressSettings.model_validate({"method": "prune", "prune": settings})
