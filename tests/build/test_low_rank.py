"""Strategies that keep the encoder: what stays is bit-identical, at rate 0 they are head-only training, they learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.build.low_rank import prepare_adapter, prepare_low_rank
from ssl_ft.build.parts import optimizer_for
from ssl_ft.build.strategies import STRATEGIES
from ssl_ft.config import FinetuneSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.views import ViewRecipe
from ssl_ft.errors import UserError
from ssl_ft.loop import LoopPlan
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.transfer.finetune import Fitted, ValSet, finetune
from ssl_ft.transfer.strategy import Prepared, head_names, move_only, scaled_groups
from tests.pools import store_of
from tests.transfer.classifiers import CLASSES, SIDE, classifier_of, images

CONTRACT = InputContract(SIDE, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
KINDS = ("adapter", "lora", "dora", "qlora")
NO_VAL = ValSet(np.empty((0, 3, SIDE, SIDE), np.uint8), np.empty(0, np.int64))
COMBINATIONS = [(f, k) for f in ("vit", "convnext", "resnet") for k in KINDS if (f, k) != ("resnet", "qlora")]
each = pytest.mark.parametrize(("family", "kind"), COMBINATIONS)


def prepare(kind: str, model: nn.Module, **more: Any) -> Prepared:
    settings = FinetuneSettings.model_validate({"strategy": kind, "optim": {"weight_decay": 0.05}, **more})
    if kind == "adapter":
        return prepare_adapter(settings, model)
    return prepare_low_rank(settings, model, kind=kind)  # type: ignore[arg-type]


def labelled(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise uint8 [N, S, S, 3] in a grid as coarse as the class says."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        cell = (1, 2, 4, 8, 16)[label]
        coarse = generator.integers(0, 256, (SIDE // cell, SIDE // cell, 3))
        picture[:] = coarse.repeat(cell, 0).repeat(cell, 1)
    return pictures, labels


def train(prepared: Prepared, *, steps: int, rate: float = 3e-3, val: ValSet = NO_VAL) -> Fitted:
    pictures, labels = labelled(40, seed=0)
    views = ViewMaker(ViewRecipe(size=SIDE, scale=(0.9, 1.0), jitter=0.0, grey=0.0), CONTRACT.mean, CONTRACT.std, 0)
    objective = Supervised(prepared.model, torch.from_numpy(labels), views=views, label_smoothing=0.0)
    optimizer = optimizer_for(FinetuneSettings().optim, prepared.groups, batch_size=20)
    plan = LoopPlan(steps, 2, rate, log_every=50, eval_every=10, save_every=steps)
    return finetune(
        objective, optimizer, store_of(pictures), val, prepared=prepared, contract=CONTRACT, plan=plan, batch_size=20,
        patience=100, device=torch.device("cpu"), seed=0, should_stop=lambda: False, on_row=lambda step, row: None,
    )  # fmt: skip


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by the names they have in timm; for those of 4 bits, their bits."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {n.replace(".base_layer", "").replace(".base.", "."): t.detach().clone() for n, t in found}


@each
def test_all_that_is_frozen_stays_bit_identical_buffers_included(family, kind):
    prepared = prepare(kind, classifier_of(family))
    moving = {id(p) for p in prepared.trained()}
    names = {name for name, p in prepared.model.named_parameters() if id(p) in moving}
    before = tensors(prepared.model)
    train(prepared, steps=3)
    after = tensors(prepared.model)
    assert before.keys() == after.keys()
    assert names == {name for name in before if not torch.equal(before[name], after[name])}
    # Merging touches the layers that were tuned and no others.
    tuned = {name.partition(".lora_")[0].partition(".down.")[0].partition(".up.")[0] for name in names}
    start, merged = classifier_of(family).state_dict(), prepared.merge().state_dict()
    for name, tensor in start.items():
        assert torch.equal(tensor, merged[name]) or name in names or name.rpartition(".")[0] in tuned, name


@each
def test_at_a_rate_of_nothing_it_is_the_training_of_the_head_alone(family, kind):
    # At a rate of their own they are in groups of their own.
    section = "adapter" if kind == "adapter" else "low_rank"
    prepared = prepare(kind, classifier_of(family), **{section: {"rate_share": 0.5}})
    head = head_names(prepared.model)
    in_head = {id(p) for name, p in prepared.model.named_parameters() if name in head}
    groups = [g if id(g["params"][0]) in in_head else {**g, "scale": 0.0} for g in prepared.groups]
    assert {g["scale"] for g in groups} == {0.0, 1.0}
    train(replace(prepared, groups=groups), steps=4)
    # What the 4 bits made of the base is where a head alone would start from too.
    alone = prepare(kind, classifier_of(family)).merge()
    move_only(alone, head)
    scales = dict.fromkeys(head, 1.0)
    only = Prepared(alone, scaled_groups(alone, scales, weight_decay=0.05), merge=lambda: alone)
    train(only, steps=4)
    assert prepared.model.get_classifier().weight.abs().sum() > 0
    for one, other in zip(head_tensors(prepared.model), head_tensors(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    merged = prepared.merge().state_dict()
    assert all(torch.equal(merged[n], t) for n, t in alone.state_dict().items() if n not in head and kind != "dora")
    torch.testing.assert_close(prepared.merge()(images()), alone(images()), rtol=1e-5, atol=1e-5)


def head_tensors(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.get_classifier().parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_a_head_alone_does_not(kind):
    """The best on val is put back, adapters and head alike, and merged it scores the same."""
    pictures, labels = labelled(50, seed=1)
    val = ValSet(pictures.transpose(0, 3, 1, 2).copy(), labels)
    prepared = prepare(kind, classifier_of("vit"))
    fitted = train(prepared, steps=40, rate=1e-2, val=val)
    head = classifier_of("vit")
    move_only(head, head_names(head))
    only = Prepared(head, scaled_groups(head, dict.fromkeys(head_names(head), 1.0), weight_decay=0.05), lambda: head)
    assert fitted.val_accuracy is not None
    assert fitted.val_accuracy >= (train(only, steps=40, rate=1e-2, val=val).val_accuracy or 0.0) + 0.1
    with torch.no_grad():
        logits = prepared.merge()(CONTRACT.normalise(torch.from_numpy(val.pixels)))
    assert float((logits.argmax(1).numpy() == labels).mean()) == fitted.val_accuracy


def test_settings_reach_the_updates():
    settings = {"rank": 3, "alpha": 6.0, "dropout": 0.25, "rate_share": 0.5}
    prepared = prepare("lora", classifier_of("vit"), low_rank=settings)
    layer = prepared.model.get_submodule("blocks.0.attn.qkv")
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (3, 2.0, 0.25)
    scales = {id(p): g["scale"] for g in prepared.groups for p in g["params"]}
    assert scales[id(layer.lora_A["default"].weight)] == 0.5
    assert all(scales[id(p)] == 1.0 for p in prepared.model.get_classifier().parameters())
    adapted = prepare("adapter", classifier_of("vit"), adapter={"width": 3, "rate_share": 0.25})
    adapter = adapted.model.get_submodule("blocks.0.attn.qkv")
    assert adapter.down.weight.shape == (3, 64)
    assert {g["scale"] for g in adapted.groups} == {0.25, 1.0}


def test_doras_magnitudes_do_not_decay():
    prepared = prepare("dora", classifier_of("resnet"))
    names = {id(p): name for name, p in prepared.model.named_parameters()}
    decays = {names[id(p)]: g["weight_decay"] for g in prepared.groups for p in g["params"]}
    magnitudes = [decay for name, decay in decays.items() if "lora_magnitude_vector" in name]
    assert magnitudes == [0.0] * 9
    assert all(decay == 0.05 for name, decay in decays.items() if ".lora_A." in name or ".lora_B." in name)


def test_qlora_is_refused_for_convolutions():
    with pytest.raises(UserError, match=r"strategy=qlora keeps linear layers in 4 bits, and ResNet has convolutions"):
        prepare("qlora", classifier_of("resnet"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"strategy": "full", "low_rank": {"rank": 4}}, "low_rank belongs to strategy=lora or dora or qlora"),
        ({"strategy": "lora", "adapter": {"width": 4}}, "adapter belongs to strategy=adapter; strategy=lora does not"),
        ({"strategy": "dora", "batch_norm": "batch"}, "no batch norm moves in strategy=dora; leave it out"),
        ({"strategy": "lora", "low_rank": {"rank": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings.model_validate(words)


def test_all_of_them_are_in_the_table():
    assert set(KINDS) <= set(STRATEGIES)
