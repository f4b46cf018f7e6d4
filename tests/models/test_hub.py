"""Weights of timm's hub: what timm would drop without a word is refused, and only the network is called offline."""

import errno

import pytest
import timm
import torch
from timm.models import _builder as builder
from torch import Tensor

from ssl_ft.build.parts import encoder_spec, new_encoder
from ssl_ft.config import EncoderSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder, load_pretrained

HUB_SETTING = "encoder.pretrained=timm"


def on_hub(monkeypatch: pytest.MonkeyPatch, given: dict[str, Tensor] | Exception) -> None:
    """Have the hub answer every question with these weights or this error."""

    def answer(*_: object, **__: object) -> dict[str, Tensor]:
        if isinstance(given, Exception):
            raise given
        return {key: value.clone() for key, value in given.items()}

    monkeypatch.setattr(builder, "load_state_dict_from_hf", answer)
    monkeypatch.setattr(builder, "load_state_dict_from_url", answer)


def classifier_weights(name: str) -> dict[str, Tensor]:
    torch.manual_seed(4)
    model = timm.create_model(name, pretrained=False)
    return {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}


def test_a_vit_keeps_the_pooling_of_its_weights_all_of_which_are_loaded(monkeypatch):
    given = classifier_weights("test_vit")
    on_hub(monkeypatch, given)
    settings = EncoderSettings(name="test_vit", pretrained="timm")
    spec = encoder_spec(settings, channels=3, size=160)
    encoder, sentence = new_encoder(settings, spec, seed=0)
    state = encoder.state_dict()
    assert {"norm.weight", "norm.bias"} <= state.keys()
    assert all(torch.equal(value, given[key]) for key, value in state.items())
    assert f"loaded {len(state)} of {len(state)} tensors from timm" in sentence
    assert "features are pooled by token" in sentence


def test_a_fresh_norm_behind_the_pool_does_not_pass_for_loaded(monkeypatch):
    on_hub(monkeypatch, classifier_weights("test_vit"))
    spec = EncoderSpec("test_vit", 3, 160, args={"global_pool": "avg"})
    encoder = build_encoder(spec, seed=0)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=r"hold nothing for 2 of .*fc_norm\.bias, fc_norm\.weight.*fc_norm: false"):
        load_pretrained(encoder, spec, source="timm")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    load = EncoderSpec("test_vit", 3, 160, args={"global_pool": "avg", "fc_norm": False})
    assert "loaded" in load_pretrained(build_encoder(load, seed=0), load, source="timm")


def test_blocks_that_the_weights_do_not_have_are_named(monkeypatch):
    on_hub(monkeypatch, classifier_weights("test_vit"))
    spec = EncoderSpec("test_vit", 3, 160, args={"global_pool": "token", "depth": 8})
    with pytest.raises(UserError, match=r"hold nothing for .*blocks\.6\.attn.*leave out the args"):
        load_pretrained(build_encoder(spec, seed=0), spec, source="timm")


def test_weights_without_a_head_that_do_not_fit_are_not_said_to_be_offline(monkeypatch):
    weights = {key: v for key, v in classifier_weights("vit_small_patch14_dinov2").items() if "head." not in key}
    on_hub(monkeypatch, weights)
    spec = EncoderSpec("vit_small_patch14_dinov2", 3, 28, args={"global_pool": "avg"})
    with pytest.raises(UserError, match=r"do not load into the architecture .*fc_norm") as caught:
        load_pretrained(build_encoder(spec, seed=0), spec, source="timm")
    assert "Offline" not in str(caught.value)


def test_the_network_alone_is_called_offline(monkeypatch):
    spec = EncoderSpec("test_resnet", 3, 32)
    encoder = build_encoder(spec, seed=0)
    on_hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(UserError, match=r"could not be fetched \(ConnectionError\). Offline\?"):
        load_pretrained(encoder, spec, source="timm")
    on_hub(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        load_pretrained(encoder, spec, source="timm")
