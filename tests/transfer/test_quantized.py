"""A base in 4 bits: how far weights move, what merging keeps, gradients through it, its bytes, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.transfer.low_rank import add_low_rank, low_rank_layers, merge_low_rank
from ssl_ft.transfer.quantized import (
    BLOCK,
    WIDEST_HALF_GAP,
    as_plain_linear,
    base_bytes,
    is_quantized,
    quantize_layers,
)
from tests.conftest import CHECKOUT
from tests.transfer.classifiers import CLASSES, classifier_of, images, move, plain


def quantized(model: nn.Module) -> list[str]:
    """Quantize in place and add an update; gives the names of the layers."""
    names = low_rank_layers(model, strategy="qlora")
    quantize_layers(model, names)
    add_low_rank(model, names, kind="qlora", rank=4, alpha=8.0, dropout=0.0, seed=0)
    return names


def magnitudes(weight: Tensor) -> Tensor:
    """The largest magnitude of each block of 64, at each weight."""
    return weight.flatten().view(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK).view_as(weight)


def kept_magnitudes(layer: nn.Module) -> Tensor:
    """What double quantization left of them."""
    from bitsandbytes.functional import dequantize_blockwise

    state = layer.weight.quant_state
    values = dequantize_blockwise(state.absmax, state.state2) + state.offset
    return values.repeat_interleave(BLOCK).view(state.shape)


def test_each_weight_moves_by_no_more_than_half_the_widest_gap_of_its_block():
    model = classifier_of("vit")
    before = {name: layer.weight.detach().clone() for name, layer in model.named_modules() if hasattr(layer, "weight")}
    names = low_rank_layers(model, strategy="qlora")
    quantize_layers(model, names)
    for name in names:
        layer = model.get_submodule(name)
        assert is_quantized(layer)
        moved = (as_plain_linear(layer).weight - before[name]).abs()
        largest, kept = magnitudes(before[name]), kept_magnitudes(layer)
        assert (moved <= WIDEST_HALF_GAP * largest + (kept - largest).abs() + 1e-7).all()
        # Double quantization: less than a hundredth on top.
        assert ((kept - largest).abs() <= 0.01 * largest).all()
        assert moved.max() > 0.05 * largest.max(), "nothing was quantized"


# The 16 levels, from appendix E of the paper, to 4 digits.
LEVELS = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
LEVELS += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]


def test_the_values_are_the_nearest_levels_of_nf4():
    model = classifier_of("vit")
    weight = model.blocks[0].attn.qkv.weight.detach().clone()
    quantize_layers(model, ["blocks.0.attn.qkv"])
    layer = model.blocks[0].attn.qkv
    levels = torch.tensor(LEVELS)
    nearest = levels[(weight / magnitudes(weight)).unsqueeze(-1).sub(levels).abs().argmin(-1)]
    expected = nearest * kept_magnitudes(layer)
    given = as_plain_linear(layer).weight
    # A weight midway between two levels may fall to either: a few in ten thousand, at four digits.
    assert ((given - expected).abs() > 1e-4).float().mean() < 1e-3
    assert pytest.approx((LEVELS[1] - LEVELS[0]) / 2, abs=1e-4) == WIDEST_HALF_GAP


def test_merged_computes_what_was_trained_and_loads_in_plain_timm():
    model, original = classifier_of("vit"), classifier_of("vit")
    names = quantized(model)
    move(model)
    unmerged = model(images(4))
    merged = merge_low_rank(model)
    torch.testing.assert_close(merged(images(4)), unmerged, rtol=1e-5, atol=1e-5)
    loaded = plain("vit").eval()
    loaded.load_state_dict(merged.state_dict())
    assert torch.equal(loaded(images(4)), merged(images(4)))
    assert [type(part) for part in loaded.modules()] == [type(part) for part in merged.modules()]
    for name in names:
        tuned = model.get_submodule(name)
        update = 2.0 * tuned.lora_B["default"].weight @ tuned.lora_A["default"].weight
        weight = original.get_submodule(name).weight
        off = (merged.get_submodule(name).weight - (weight + update)).abs()
        assert (off <= 0.162 * magnitudes(weight) + 1e-6).all()
    assert torch.equal(model(images(4)), unmerged), "merging changed the model that trains on"


def test_gradients_pass_through_it_before_and_after_a_look_at_val_and_it_stays_as_it_is():
    model = classifier_of("vit")
    names = quantized(model)
    move(model)
    held = {name: model.get_submodule(name).get_base_layer().weight for name in names}
    bits = {name: weight.detach().clone() for name, weight in held.items()}

    def gradients() -> list[Tensor]:
        moving = [p for p in model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(model.train()(images()).square().sum(), moving))

    first = gradients()
    with torch.no_grad():
        looked = model.eval()(images())
    again = gradients()
    assert all(one.abs().sum() > 0 and torch.equal(one, two) for one, two in zip(first, again, strict=True))
    torch.testing.assert_close(model.train()(images()), looked, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(held[name], bits[name]) for name in names)
    assert all(not weight.requires_grad for weight in held.values())


def test_mixed_precision_leaves_biases_in_float32():
    model = classifier_of("vit")
    names = quantized(model)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(images()).sum().backward()
    assert all(model.get_submodule(name).get_base_layer().bias.dtype == torch.float32 for name in names)


def test_its_bytes_are_those_of_4_bits_and_of_what_stays():
    wide = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, depth=2, img_size=32)
    head = sum(p.numel() for p in wide.head.parameters())
    in_blocks = sum(wide.get_submodule(n).weight.numel() for n in low_rank_layers(wide, strategy="qlora"))
    others = sum(p.numel() for p in wide.parameters()) - in_blocks - head
    names = quantized(wide)
    held = base_bytes(wide)
    # Half a byte a weight; a byte and 1/256 of a float for each 64; two tables and an offset for each layer.
    beside = in_blocks // 64 + 4 * (-(-in_blocks // (64 * 256)) + len(names)) + len(names) * 4 * (16 + 256 + 1)
    assert in_blocks // 2 + 4 * others < held <= in_blocks // 2 + 4 * others + beside


@pytest.mark.parametrize("family", ["resnet", "convnext-conv"])
def test_convolutions_have_no_4_bit_form(family):
    model = classifier_of(family)
    with pytest.raises(
        UserError, match=r"strategy=qlora keeps linear layers in 4 bits.*has convolutions.*strategy=lora"
    ):
        quantize_layers(model, low_rank_layers(model, strategy="qlora"))


def test_without_bitsandbytes_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"^strategy=qlora needs the package bitsandbytes; pip install '\.\[qlora\]'$"):
        quantize_layers(classifier_of("vit"), ["blocks.0.attn.qkv"])


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_said_where_the_package_kernels_is_installed(tmp_path: Path):
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')")
    code = (
        "import sys; import ssl_ft.transfer.low_rank, ssl_ft.transfer.quantized, ssl_ft.transfer.extras as extras;"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules);"
        "import logging; talk = logging.getLogger('torch.utils._pytree'); before = list(talk.filters), talk.level;"
        "extras.import_peft(strategy='lora'); extras.import_bitsandbytes(); assert 'kernels' not in sys.modules;"
        "assert (list(talk.filters), talk.level) == before"
    )
    paths = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_vit_b_trains_on_the_cpu_with_its_base_in_a_third_of_its_bfloat16_bytes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_base_patch16_224", num_classes=CLASSES)
    base = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.head.parameters())
    quantized(model)
    assert base_bytes(model) / (2 * base) <= 0.35
    moving = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(moving, lr=1e-3)
    pictures = torch.randn(5, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(6):
        adam.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), torch.arange(5))
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(merge_low_rank(model).eval()(pictures), model(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_on_cuda_it_computes_what_it_does_on_a_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = classifier_of("vit")
    quantized(model)
    move(model)
    expected = model(images())
    torch.testing.assert_close(model.cuda()(images().cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merge_low_rank(model).cpu()(images()), expected, rtol=1e-4, atol=1e-4)
