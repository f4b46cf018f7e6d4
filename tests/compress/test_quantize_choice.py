"""Which kind suits which model, what is refused, and settings that do not go together."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ssl_ft.compress import quantize_choice
from ssl_ft.compress.quantize_choice import Weights, check_kind, choose_kind, count_weights, needs_reduced_range
from ssl_ft.config import CompressSettings, QuantizeSettings
from ssl_ft.errors import UserError
from tests.transfer.classifiers import plain

CONVNET, VIT = Weights(20, 11_000_000, 1, 5_000), Weights(1, 150_000, 49, 5_300_000)
LARGE = Weights(1, 600_000, 97, 302_000_000)


@pytest.mark.parametrize(
    ("weights", "engine", "kind", "why"),
    [
        (CONVNET, "onnxruntime", "static", "convolutions hold most of its weights"),
        (VIT, "onnxruntime", "dynamic", "linear layers hold most of its weights"),
        (LARGE, "onnxruntime", "weight_only", "its linear layers hold 302 million"),
        (CONVNET, "pt2e", "static", "engine=pt2e has no other kind"),
        (VIT, "pt2e", "static", "engine=pt2e has no other kind"),
    ],
)
def test_each_family_has_its_kind_and_a_reason(weights, engine, kind, why):
    chosen, reason = choose_kind(weights, engine=engine)
    assert chosen == kind
    assert why in reason


@pytest.mark.parametrize(
    ("family", "kind"), [("resnet", "static"), ("vit", "dynamic"), ("convnext", "dynamic"), ("convnext-conv", "static")]
)
def test_families_of_timm_are_told_by_their_weights(family, kind):
    model = plain(family)
    weights = count_weights(model)
    held = sum(p.numel() for p in model.parameters() if p.ndim in (2, 4))
    assert weights.in_convolutions + weights.in_linear == pytest.approx(held, rel=0.05)
    assert choose_kind(weights, engine="onnxruntime")[0] == kind


@pytest.mark.parametrize("kind", ["dynamic", "weight_only"])
def test_a_kind_that_would_quantize_next_to_nothing_is_refused(kind):
    message = (
        rf"quantize.kind={kind} .*: of resnet18 1 of its 21 layers, 0.0% of the weights. Take quantize.kind=static"
    )
    with pytest.raises(UserError, match=message):
        check_kind(CONVNET, kind, name="resnet18")
    check_kind(CONVNET, "static", name="resnet18")
    check_kind(VIT, kind, name="vit")


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match="nothing of it would be quantized"):
        check_kind(count_weights(nn.BatchNorm2d(3)), "static", name="norm")


@pytest.mark.parametrize(
    ("machine", "known", "is_reduced"),
    [
        ("x86_64", {"avx2": True}, True),
        ("x86_64", {"avx512_vnni": True}, False),
        ("AMD64", {"avx_vnni": True, "avx512_vnni": False}, False),
        ("aarch64", {}, False),
    ],
)
def test_weights_of_7_bits_where_sums_saturate(monkeypatch, machine, known, is_reduced):
    monkeypatch.setattr(quantize_choice.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert needs_reduced_range() is is_reduced


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "dynamic", "engine": "pt2e"}, "engine=pt2e has kind=static and kind=qat; kind=dynamic is of"),
        ({"kind": "weight_only", "images": 100}, "images: kind=weight_only engine=auto does not read it"),
        ({"kind": "qat", "calibration": "entropy"}, "calibration: kind=qat engine=auto does not read it"),
        ({"engine": "pt2e", "calibration": "entropy"}, "calibration: kind=auto engine=pt2e does not read it"),
        ({"kind": "static", "rate_share": 0.1}, "rate_share: kind=static engine=auto does not read it"),
        ({"images": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tree, message):
    with pytest.raises(ValidationError, match=message):
        CompressSettings.model_validate({"method": "quantize", "quantize": tree})


def test_settings_written_out_in_full_are_read_again():
    settings = QuantizeSettings(kind="dynamic")
    assert QuantizeSettings.model_validate(settings.model_dump(mode="json")) == settings
