"""Structured pruning: without parts that count nothing a model computes the same, and what cannot be cut is named."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ssl_ft.compress.importance import add_gradients, channel_scores, parameter_scores
from ssl_ft.compress.prune_search import find_share
from ssl_ft.compress.prune_widths import (
    Shears,
    Width,
    find_widths,
    joint_scores,
    narrow,
    planned_sizes,
    rounded,
)
from ssl_ft.errors import UserError
from tests.compress.models import convnext, resnet, silence_convnet, silence_dims, silence_hidden, vit

SIZE = 16
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)


def cut(model: nn.Module, share: float, shears: Shears) -> nn.Module:
    widths, _ = find_widths(copy.deepcopy(model), shears, example=EXAMPLE)
    full = {width.name: len(width.scores) for width in widths}
    sizes = planned_sizes(widths, share, full=full, shears=shears)
    return narrow(model, sizes, shears=shears, example=EXAMPLE)


def assert_same(model: nn.Module, smaller: nn.Module) -> None:
    images = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), model(images), rtol=1e-9, atol=1e-9)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, smaller))
    assert after < before


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_resnet_without_its_silent_channels_is_the_same(scope):
    pytest.importorskip("torch_pruning")
    model = resnet()
    silence_convnet(model)
    smaller = cut(model, 0.25, Shears("channels", round_to=1, scope=scope))
    assert_same(model, smaller)
    widths = {name: m.num_features for name, m in smaller.named_modules() if isinstance(m, nn.BatchNorm2d)}
    whole = {name: m.num_features for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert widths == {name: count - count // 4 for name, count in whole.items()}
    assert (smaller.num_features, smaller.head_hidden_size) == (24, 24)
    assert model.num_features == 32, "the model given is left alone"


def test_a_resnets_stream_can_stay_whole():
    pytest.importorskip("torch_pruning")
    model = resnet()
    smaller = cut(model, 0.5, Shears("channels", stream=False))
    assert smaller.num_features == model.num_features
    assert smaller.layer2[0].conv1.out_channels == 8
    assert smaller.layer2[0].conv2.out_channels == 16
    _, left = find_widths(copy.deepcopy(model), Shears("channels", stream=False), example=EXAMPLE)
    assert any("a residual sum ties them" in each for each in left)


@pytest.mark.parametrize(("make", "kind"), [(vit, "units"), (convnext, "units"), (convnext, "channels")])
def test_without_silent_neurons_a_transformer_or_convnext_is_the_same(make, kind):
    if kind == "channels":
        pytest.importorskip("torch_pruning")
    model = make()
    silence_hidden(model)
    keep = ("stem",) if make is convnext else ()
    assert_same(model, cut(model, 0.25, Shears(kind, round_to=1, keep=keep)))


def test_without_silent_dimensions_attention_is_the_same_fused_or_not():
    model = vit()
    silence_dims(model)
    silence_hidden(model)
    smaller = cut(model, 0.25, Shears("channels", round_to=1))
    attention = smaller.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (3, 12, 36)
    assert_same(model, smaller)
    for block in smaller.blocks:
        block.attn.fused_attn = False
    assert_same(model, smaller)


@pytest.mark.parametrize(("make", "kind"), [(vit, "units"), (resnet, "channels")])
def test_by_taylor_the_largest_part_goes_where_no_loss_depends_on_it(make, kind):
    if kind == "channels":
        pytest.importorskip("torch_pruning")
    model = make()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    block = model.blocks[0].mlp if kind == "units" else model.layer1[0]
    first, second = (block.fc1, block.fc2) if kind == "units" else (block.conv1, block.conv2)
    parts = [(first, 0), (first, 0), (second, 1)] if kind == "units" else [(first, 0), (block.bn1, 0), (second, 1)]
    with torch.no_grad():
        for layer, dim in parts:
            layer.weight.select(dim, 5).mul_(100)
            layer.weight.grad.select(dim, 5).zero_()
    for each in [first, block.bn1] if kind == "channels" else [first]:
        if each.bias is not None:
            each.bias.grad[5] = 0
    shears = Shears(kind, importance="taylor", round_to=1)
    widths, _ = find_widths(copy.deepcopy(model), shears, example=EXAMPLE)
    (name,) = [w.name for w in widths if w.name in ("blocks.0.mlp", "layer1.0.conv1")]
    sizes = {w.name: len(w.scores) - (w.name == name) for w in widths}
    smaller = narrow(model, sizes, shears=shears, example=EXAMPLE)
    left = dict(smaller.named_modules())[f"{name}.fc1" if kind == "units" else name].weight
    rest = [i for i in range(len(first.weight)) if i != 5]
    torch.testing.assert_close(left, first.weight[rest])
    magnitude = narrow(model, sizes, shears=Shears(kind, round_to=1), example=EXAMPLE)
    kept = dict(magnitude.named_modules())[f"{name}.fc1" if kind == "units" else name].weight
    assert (kept.abs().flatten(1).max(1).values > left.abs().max()).any(), "by magnitude it stays"


def test_whole_heads_go():
    model = vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.view(3, 3, 16, -1)[:, 1] = 0
            block.attn.qkv.bias.view(3, 3, 16)[:, 1] = 0
            block.attn.proj.weight.view(-1, 3, 16)[:, 1] = 0
    smaller = cut(model, 1 / 3, Shears("channels", heads="whole", keep=tuple(f"blocks.{i}.mlp" for i in range(2))))
    assert (smaller.blocks[1].attn.num_heads, smaller.blocks[1].attn.head_dim) == (2, 16)
    assert_same(model, smaller)


def test_a_convnexts_stream_is_cut_where_asked_for():
    pytest.importorskip("torch_pruning")
    model = convnext()
    smaller = cut(model, 0.5, Shears("channels", stream=True))
    assert (smaller.num_features, smaller.head.num_features, smaller.head.fc.in_features) == (16, 16, 16)
    assert smaller.stages[0].blocks[0].conv_dw.groups == 8
    _, left = find_widths(copy.deepcopy(model), Shears("channels"), example=EXAMPLE)
    assert any("a layer norm runs over them; prune.stream=true" in each for each in left)


@pytest.mark.parametrize(
    ("count", "size", "to", "wanted"),
    [(35.9, 64, 8, 32), (36, 64, 8, 40), (1, 64, 8, 8), (63, 64, 8, 64), (4.4, 8, 8, 4), (0.1, 8, 8, 1), (9, 9, 4, 8)],
)
def test_what_stays_is_a_multiple(count, size, to, wanted):
    assert rounded(count, size=size, to=to) == wanted


def test_rounded_up_it_can_still_become_what_a_larger_share_leaves():
    for size in (9, 16, 24, 53, 144):
        for now in range(1, size + 1):
            held = rounded(now, size=size, to=8, is_up=True)
            assert held >= now
            for later in range(1, now + 1):
                for to in (8, 4, 2, 1):
                    assert rounded(later, size=size, to=to) <= max(held, to if size > to else 1)


def test_ranked_together_no_layer_loses_all():
    widths = [
        Width("a", torch.arange(10.0), lambda gone: None),
        Width("b", torch.arange(10.0) + 100, lambda gone: None),
    ]
    full = {"a": 10, "b": 10}
    assert planned_sizes(widths, 0.45, full=full, shears=Shears("channels", scope="global", round_to=1)) == {
        "a": 1,
        "b": 10,
    }
    assert planned_sizes(widths, 0.9, full=full, shears=Shears("channels", scope="global", round_to=1)) == {
        "a": 1,
        "b": 1,
    }


class TestScores:
    def test_magnitude_is_relative_to_each_tensor(self):
        parts = [torch.tensor([1.0, 3.0]).double(), torch.tensor([300.0, 100.0]).double(), torch.zeros(2).double()]
        assert joint_scores(parts, importance="magnitude").tolist() == [(0.5 + 1.5) / 3, (1.5 + 0.5) / 3]
        assert joint_scores(parts, importance="taylor").tolist() == [301.0, 103.0]

    def test_of_rows(self):
        weight, gradient = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, -1.0], [5.0, 9.0]])
        assert channel_scores(weight, None).tolist() == [25.0, 1.0]
        assert channel_scores(weight, gradient).tolist() == [1.0, 25.0]

    def test_taylor_is_the_first_term_of_the_loss(self):
        """Against the loss itself, with one weight a little nearer to zero."""
        model, images = resnet(), torch.randn(6, 3, SIZE, SIZE, dtype=torch.float64)
        labels, loss = torch.tensor([0, 1, 2, 0, 1, 2]), nn.functional.cross_entropy
        add_gradients(model, list(images.split(4)), targets=list(labels.split(4)), loss=loss)
        weight = model.layer1[0].conv1.weight
        score = parameter_scores(model, importance="taylor")["layer1.0.conv1.weight"][3, 2, 0, 0]
        with torch.no_grad():
            before, step = loss(model(images), labels), 1e-6
            weight[3, 2, 0, 0] *= 1 - step
            change = (loss(model(images), labels) - before) / step
        assert math.isclose(abs(float(change)), float(score), rel_tol=1e-3)


class TestSearch:
    def find(self, target: float, *, rounding: tuple[int, ...] = (8, 4, 2, 1)) -> Any:
        """Of one layer of 20 parts, the cost is their share."""
        widths = [Width("a", torch.arange(20.0), lambda gone: None)]
        asked = list[int]()

        def cost(sizes: dict[str, int]) -> float:
            asked.append(sizes["a"])
            return sizes["a"] / 20

        found = find_share(
            lambda share, to: planned_sizes(widths, share, full={"a": 20}, shears=Shears("units", round_to=to)),
            cost=cost, target=target, tolerance=0.02, rounding=rounding,
        )  # fmt: skip
        assert len(set(asked)) == len(asked), "each set of widths is costed once"
        return found

    def test_coarse_widths_are_kept_where_they_meet_the_target(self):
        assert (self.find(0.8).sizes, self.find(0.8).round_to) == ({"a": 16}, 8)

    def test_finer_ones_are_taken_where_they_do_not(self):
        assert (self.find(0.55).sizes, self.find(0.55).round_to) == ({"a": 11}, 1)

    def test_what_costs_less_than_the_floor_is_not_taken(self):
        widths = [Width("a", torch.arange(16.0), lambda gone: None)]

        def find(floor: float) -> Any:
            return find_share(
                lambda share, to: planned_sizes(widths, share, full={"a": 16}, shears=Shears("units", round_to=to)),
                cost=lambda sizes: (sizes["a"] / 16) ** 2, target=0.5625, tolerance=0.02, rounding=[8], floor=floor,
            )  # fmt: skip

        assert find(0.0).sizes == {"a": 8}
        assert find(0.5).sizes == {"a": 16}

    def test_the_nearest_is_given_where_nothing_does(self):
        assert self.find(0.01).sizes == {"a": 1}


class TestRefused:
    def test_a_convnet_without_mlp(self):
        with pytest.raises(UserError, match=r"prune.kind=units: this ResNet has no MLP.*take prune.kind=channels"):
            find_widths(resnet(), Shears("units"), example=EXAMPLE)

    def test_attention_of_other_families(self):
        model = timm.create_model("mobilevit_xxs", num_classes=3)
        with pytest.raises(UserError, match=r"this ByobNet has attention \(stages.*Take prune.kind=units"):
            find_widths(model, Shears("channels"), example=torch.zeros(1, 3, 64, 64))

    def test_normalised_queries_stay_whole_and_are_named(self):
        _, left = find_widths(vit(qk_norm=True), Shears("channels"), example=EXAMPLE)
        assert left[0] == "blocks.0.attn (queries, keys or values are normalised or gated over all dimensions)"

    def test_a_transformers_stream(self):
        with pytest.raises(UserError, match=r"prune.stream=true: the tokens of a VisionTransformer"):
            find_widths(vit(), Shears("channels", stream=True), example=EXAMPLE)

    def test_everything_kept(self):
        with pytest.raises(UserError, match=r"no MLP.*Name less in prune.keep"):
            find_widths(vit(), Shears("units", keep=("blocks",)), example=EXAMPLE)

    def test_grouped_convolutions_stay_whole_and_are_named(self):
        pytest.importorskip("torch_pruning")
        model = timm.create_model("regnetx_002", num_classes=3)
        _, left = find_widths(model, Shears("channels"), example=EXAMPLE.float())
        assert any("a grouped convolution sees them" in each for each in left)
