"""Where an encoder comes from: classifiers lose their head and nothing else, weights fit whole or are refused."""

import hashlib
import re
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_ft.artifact import InputContract, ModelCard, save_model
from ssl_ft.build.origins import find_origin, load_origin, with_measured_contract
from ssl_ft.config import DataSettings, SourceSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from tests.pools import noise_images, source_of

PLAIN = SourceSettings()
SPEC = EncoderSpec("test_resnet", 3, 32, stem_stride=1)
CONTRACT = InputContract(32, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def settings(**given: object) -> SourceSettings:
    return SourceSettings.model_validate(given)


def written(path: Path, name: str, **args: object) -> Path:
    """The weights of a fresh timm model in a file, as others hand them on: head included."""
    torch.manual_seed(3)
    model = timm.create_model(name, pretrained=False, num_classes=7, **args)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def assert_same_features(encoder: torch.nn.Module, plain: torch.nn.Module, *, size: int, channels: int = 3) -> None:
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), plain.eval()(images), rtol=1e-5, atol=1e-5)


class TestClassifier:
    def test_its_encoder_is_that_of_the_encoder_it_was(self, tmp_path):
        model = build_encoder(SPEC, seed=5)
        model.reset_classifier(4)
        digest = save_model(
            tmp_path / "run" / "classifier", model, ModelCard("classifier", SPEC, CONTRACT, tuple("abcd"))
        )
        for location in (tmp_path / "run", tmp_path / "run" / "classifier"):
            origin = find_origin(str(location), PLAIN)
            encoder, parent = load_origin(origin)
            assert (origin.kind, origin.card.kind, origin.card.class_names) == ("classifier", "encoder", ())
            assert origin.card.contract == CONTRACT
            assert (parent.kind, parent.sha256, parent.ancestors) == ("classifier", digest, ())
            wanted = build_encoder(SPEC, seed=0).state_dict()
            assert encoder.state_dict().keys() == wanted.keys()
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in encoder.state_dict().items())
            assert not encoder.training
            assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, encoder.num_features)

    def test_settings_of_others_weights_are_refused(self, tmp_path):
        save_model(tmp_path / "encoder", build_encoder(SPEC, seed=5), ModelCard("encoder", SPEC, CONTRACT))
        with pytest.raises(UserError, match=r"source.size: a model of ours says itself.*leave it out"):
            find_origin(str(tmp_path), settings(size=16))


class TestFile:
    def test_all_tensors_are_loaded_and_the_head_left_out(self, tmp_path):
        path = written(tmp_path / "w.safetensors", "test_resnet")
        origin = find_origin(str(path), settings(name="test_resnet", size=48, mean=[0.1, 0.2, 0.3], std=[1, 1, 2]))
        encoder, parent = load_origin(origin)
        plain = timm.create_model("test_resnet", pretrained=False, num_classes=7)
        plain.load_state_dict(_read(path))
        plain.reset_classifier(0)
        assert_same_features(encoder, plain, size=48)
        contract = origin.card.contract
        assert (contract.size, contract.mean, contract.std) == (48, (0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
        assert (parent.kind, parent.path) == ("weights", str(path))
        assert parent.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "test images may have been among them" in origin.notes[0]

    def test_what_timm_says_of_the_name_is_the_contract(self, tmp_path):
        path = written(tmp_path / "w.safetensors", "resnet10t")
        origin = find_origin(str(path), settings(name="resnet10t"))
        contract, told = origin.card.contract, timm.get_pretrained_cfg("resnet10t")
        assert (contract.size, contract.mean, contract.std) == (told.input_size[-1], told.mean, told.std)
        assert "bicubic filter; here it is bilinear" in origin.notes[1]

    def test_a_vit_keeps_the_pooling_it_was_trained_with(self, tmp_path):
        path = written(tmp_path / "w.safetensors", "test_vit", img_size=32)
        encoder, _ = load_origin(find_origin(str(path), settings(name="test_vit", size=32)))
        plain = timm.create_model("test_vit", pretrained=False, num_classes=7, img_size=32)
        plain.load_state_dict(_read(path))
        plain.reset_classifier(0)
        assert_same_features(encoder, plain, size=32)

    def test_other_channels_are_measured_on_training_images(self, tmp_path):
        path = written(tmp_path / "w.safetensors", "test_resnet", in_chans=5)
        origin = find_origin(str(path), settings(name="test_resnet", size=12, channels=5))
        assert origin.is_measured
        images = noise_images(20, channels=5)
        images[10:] = 255  # no training images
        found = with_measured_contract(origin, source_of(list(images)), np.arange(10), DataSettings())
        shares = images[:10].astype(np.float64) / 255
        np.testing.assert_allclose(found.card.contract.mean, shares.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(found.card.contract.std, shares.std((0, 1, 2)), atol=1e-6)
        assert not found.is_measured
        assert "measured on 10 training images" in found.notes[-1]
        load_origin(found)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "does not say its architecture; add source.name="),
            ({"name": "resnet1888"}, "source.name='resnet1888' is not an architecture of timm"),
            ({"name": "test_vit", "size": 30}, "source.size=30 is not a multiple of the 16 pixels"),
            ({"name": "test_resnet", "patch_size": 4}, "patch_size is defined for ViT"),
        ],
    )
    def test_what_cannot_be_built_is_explained(self, tmp_path, given, message):
        path = written(tmp_path / "w.safetensors", "test_resnet")
        with pytest.raises(UserError, match=re.escape(message)):
            find_origin(str(path), settings(**given))

    def test_weights_of_another_shape_are_refused_with_a_count(self, tmp_path):
        path = written(tmp_path / "w.safetensors", "test_resnet")
        origin = find_origin(str(path), settings(name="test_resnet", channels=1, mean=[0.5], std=[0.5]))
        with pytest.raises(UserError, match=r"encoder=.*w.safetensors: 89 of 90 tensors of 'test_resnet' fit.*conv1"):
            load_origin(origin)
        (tmp_path / "x.safetensors").write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(UserError, match=r"x.safetensors is not a safetensors file"):
            load_origin(find_origin(str(tmp_path / "x.safetensors"), settings(name="test_resnet")))

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"no.safetensors: no such file; give a finished"):
            find_origin(str(tmp_path / "no.safetensors"), settings(name="test_resnet"))

    def test_the_file_of_a_model_of_ours_is_told_to_be_named_by_its_folder(self, tmp_path):
        save_model(tmp_path / "encoder", build_encoder(SPEC, seed=5), ModelCard("encoder", SPEC, CONTRACT))
        with pytest.raises(UserError, match=r"name its folder, .*encoder"):
            find_origin(str(tmp_path / "encoder" / "model.safetensors"), PLAIN)

    @pytest.mark.parametrize(
        ("given", "message"),
        [({"mean": [0.5] * 3}, "mean and std go together"), ({"mean": [1], "std": [1]}, "mean has 1 values for")],
    )
    def test_scales_that_do_not_fit(self, given, message):
        with pytest.raises(ValueError, match=message):
            settings(**given)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and a cache of the hub that holds the weights of `test_resnet`, made here."""
    snapshot = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123456789")
    torch.manual_seed(4)
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot / "model.safetensors"


class TestHub:
    @pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k"])
    def test_weights_at_hand_are_loaded(self, offline, name):
        origin = find_origin(f"timm:{name}", settings(size=40))
        encoder, parent = load_origin(origin)
        plain = timm.create_model("test_resnet", pretrained=False)
        plain.load_state_dict(_read(offline))
        plain.reset_classifier(0)
        assert_same_features(encoder, plain, size=40)
        assert (parent.kind, parent.path, len(parent.sha256)) == ("timm", f"timm:{name}", 64)
        assert (origin.card.contract.mean, origin.card.contract.size) == ((0.5, 0.5, 0.5), 40)

    def test_weights_that_cannot_be_fetched(self, offline):
        origin = find_origin("timm:test_vit", PLAIN)
        with pytest.raises(
            UserError, match=r"encoder=timm:test_vit: the hub weights .* could not be fetched.*Offline\?"
        ):
            load_origin(origin)

    @pytest.mark.parametrize(
        ("location", "given", "message"),
        [
            ("timm:", {}, "encoder=timm: lacks a name"),
            ("timm:resnet1888", {}, "encoder=timm:resnet1888: 'resnet1888' is not an architecture"),
            ("timm:vit_tiny_patch16_gap_reg4_dinov2", {}, "is not an architecture"),
            ("timm:test_resnet", {"name": "resnet18"}, "the name stands in encoder=timm:test_resnet already"),
            ("timm:test_resnet.in22k", {}, "no weights of 'test_resnet.in22k' (it has test_resnet.r160_in1k)"),
        ],
    )
    def test_names_that_mean_nothing(self, location, given, message):
        with pytest.raises(UserError, match=re.escape(message)):
            find_origin(location, settings(**given))

    def test_architectures_without_weights(self):
        name = next(name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name))
        with pytest.raises(UserError, match=f"timm has no weights of '{name}';"):
            find_origin(f"timm:{name}", PLAIN)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
