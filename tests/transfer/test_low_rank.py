"""Low-rank updates and adapters: nothing at the start, gradients to them alone, merged = unmerged, papers' formulas."""

import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.transfer.adapters import ParallelAdapter, SeriesAdapter, add_adapters
from ssl_ft.transfer.layers import layers_named
from ssl_ft.transfer.low_rank import TARGETS, add_low_rank, low_rank_layers
from tests.transfer.classifiers import CLASSES, FAMILIES, classifier_of, images, move, plain, tune

KINDS = ("lora", "dora", "adapter")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
@each_kind
def test_fresh_ones_compute_exactly_what_the_frozen_encoder_does(family, kind):
    model = classifier_of(family)
    expected = model(images())
    tune(model, kind)
    assert torch.equal(model(images()), expected)


@each_family
@each_kind
def test_gradients_reach_all_of_them_and_the_head_and_nothing_else(family, kind):
    model = classifier_of(family)
    before = set(dict(model.named_parameters()))
    head = {id(p) for p in model.get_classifier().parameters()}
    tune(model, kind)
    move(model)
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        is_ours = ".lora_" in name or ".down." in name or ".up." in name
        if is_ours or id(parameter) in head:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
            assert name.replace(".base_layer", "").replace(".base", "") in before


@each_family
@each_kind
def test_merged_computes_the_same_and_is_a_plain_timm_model(family, kind):
    model = classifier_of(family)
    frozen = model(images(4))
    merge = tune(model, kind)
    move(model)
    unmerged = model(images(4))
    assert (unmerged - frozen).abs().max() > 0.1, "nothing to merge"
    merged = merge(model)
    torch.testing.assert_close(merged(images(4)), unmerged, rtol=1e-5, atol=1e-5)
    loaded = plain(family).eval()
    loaded.load_state_dict(merged.state_dict())
    assert list(loaded.state_dict()) == list(merged.state_dict())
    assert [type(part) for part in loaded.modules()] == [type(part) for part in merged.modules()]
    assert torch.equal(loaded(images(4)), merged(images(4)))
    assert all(p.requires_grad for p in merged.parameters())
    assert torch.equal(model(images(4)), unmerged), "merging changed the model that trains on"


@each_family
@each_kind
def test_the_frozen_layers_alone_would_not_do(family, kind):
    """Merging without the update would be seen: the encoder's part of it moves the features, not the head's alone."""
    model = classifier_of(family)
    merge = tune(model, kind)
    move(model)
    merged = merge(model)
    bare = classifier_of(family)
    bare.get_classifier().load_state_dict(merged.get_classifier().state_dict())
    assert (merged(images()) - bare(images())).abs().max() > 1e-2


@each_kind
def test_the_seed_alone_decides_where_they_start(kind):
    def start(seed: int) -> dict[str, Tensor]:
        model = classifier_of("vit")
        state = torch.get_rng_state()
        tune(model, kind, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}

    one, again, other = start(1), start(1), start(2)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def updated(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor | None) -> Tensor:
    """W + 2 B A, filter by filter, for DoRA m (W + 2 B A) / ‖W + 2 B A‖ with the norm held constant."""
    rows = []
    for index in range(len(weight)):
        row = weight[index].flatten() + 2.0 * sum(up.flatten(1)[index, k] * down[k].flatten() for k in range(len(down)))
        if magnitude is not None:
            row = magnitude.flatten()[index] * row / row.detach().square().sum().sqrt()
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("family", "name"), [("vit", "blocks.1.mlp.fc1"), ("resnet", "layer2.0.conv1")])
def test_values_and_gradients_are_those_of_the_papers(family, name, kind):
    model = classifier_of(family).double()
    tune(model, kind)
    move(model)
    layer = model.get_submodule(name)
    base = layer.get_base_layer()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    moved = [down, up, *([layer.lora_magnitude_vector["default"].weight] if kind == "dora" else [])]
    generator = torch.Generator().manual_seed(5)
    shape = (3, 7, base.weight.shape[1]) if family == "vit" else (3, base.weight.shape[1], 6, 6)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = updated(base.weight, down, up, moved[2] if kind == "dora" else None)
    if family == "vit":
        expected = torch.einsum("bti,oi->bto", x, rows) + base.bias
    else:
        patches = F.unfold(x, base.kernel_size, padding=base.padding, stride=base.stride)
        expected = torch.einsum("bip,oi->bop", patches, rows).unflatten(2, (3, 3))
    given = layer(x)
    weights = torch.randn(given.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((given * weights).sum(), [x, *moved])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, *moved])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_an_adapter_before_a_layer_is_the_papers_formula():
    model = classifier_of("vit").double()
    tune(model, "adapter")
    move(model)
    layer = model.get_submodule("blocks.0.attn.qkv")
    assert isinstance(layer, SeriesAdapter)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    passed = x + torch.einsum("btj,ij->bti", torch.einsum("bti,ji->btj", x, layer.down.weight), layer.up.weight)
    expected = torch.einsum("bti,oi->bto", passed, layer.base.weight) + layer.base.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


def test_an_adapter_beside_a_convolution_sees_the_pixels_at_the_middle_of_its_kernel():
    model = classifier_of("resnet").double()
    tune(model, "adapter")
    move(model)
    layer = model.get_submodule("layer2.0.conv1")
    assert isinstance(layer, ParallelAdapter)
    assert layer.base.stride == (2, 2)
    x = torch.randn(1, 32, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = layer.up.weight[:, :, 0, 0] @ layer.down.weight[:, :, 0, 0]
    beside = torch.einsum("oi,bihw->bohw", matrix, x[:, :, ::2, ::2])
    torch.testing.assert_close(layer(x) - layer.base(x), beside, rtol=1e-9, atol=1e-9)


def test_which_layers_are_taken():
    vit = low_rank_layers(classifier_of("vit"), strategy="lora")
    assert vit == [f"blocks.{k}.{n}" for k in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert all(".mlp.fc" in name for name in low_rank_layers(classifier_of("convnext"), strategy="lora"))
    convs = ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"]
    convs += ["layer3.0.conv1", "layer3.0.conv2", "layer3.0.conv3", "layer4.0.conv1", "layer4.0.conv2"]
    assert low_rank_layers(classifier_of("resnet"), strategy="lora") == convs


def resnext() -> nn.Module:
    """Two blocks whose 3×3 convolutions are in 4 groups."""
    with torch.random.fork_rng(devices=[]):
        return ResNet(Bottleneck, (1, 1), num_classes=CLASSES, cardinality=4, base_width=8, channels=(16, 16))


def test_grouped_convolutions_get_no_update_and_an_adapter_is_refused():
    model = resnext()
    names = low_rank_layers(model, strategy="lora")
    assert names == ["layer1.0.conv1", "layer1.0.conv3", "layer2.0.conv1", "layer2.0.conv3"]
    with pytest.raises(UserError, match=r"strategy=adapter sits beside 3×3 convolutions.* are grouped.*strategy=lora"):
        add_adapters(model, width=4, seed=0)


@pytest.mark.parametrize("strategy", ["lora", "dora", "adapter"])
def test_other_families_are_refused(strategy):
    mixer = timm.create_model("mixer_s32_224", num_classes=CLASSES)
    with pytest.raises(UserError, match=rf"strategy={strategy} is defined for ViT, ConvNeXt, ResNet.*MlpMixer.*full"):
        tune(mixer, strategy)


def test_a_family_without_a_pattern_and_one_without_such_layers_are_refused():
    with pytest.raises(UserError, match=r"strategy=lora is defined for ViT encoders, not for ResNet"):
        layers_named(classifier_of("resnet"), {"vit": TARGETS["vit"]}, strategy="lora")
    with pytest.raises(UserError, match=r"strategy=lora: none of this VisionTransformer's layers"):
        layers_named(classifier_of("vit"), {"vit": "no such name"}, strategy="lora")


def test_dora_refuses_filters_that_are_all_zero():
    model = classifier_of("resnet")
    with torch.no_grad():
        model.layer2[0].conv1.weight[:3] = 0
    with pytest.raises(
        UserError, match=r"3 of the encoder's layer 'layer2\.0\.conv1' are all zero; take strategy=lora"
    ):
        tune(model, "dora")
    tune(model, "lora")


def test_without_peft_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = classifier_of("vit")
    for kind, extra in (("lora", "peft"), ("dora", "peft"), ("qlora", "qlora")):
        with pytest.raises(UserError, match=rf"^strategy={kind} needs the package peft; pip install '\.\[{extra}\]'$"):
            add_low_rank(model, ["head"], kind=kind, rank=1, alpha=1.0, dropout=0.0, seed=0)
