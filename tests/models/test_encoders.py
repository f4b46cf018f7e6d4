"""Encoders: families, channels, stems with the stride they promise, seeds, weights in full or refused, feature maps."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.models.encoders import (
    EncoderSpec,
    build_encoder,
    family,
    feature_map,
    is_convnext,
    is_vit,
    load_pretrained,
    num_features,
    pool_map,
    stem_edits,
)

VIT = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args={"depth": 1, "embed_dim": 32, "num_heads": 2})
SMALL_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
SWIN_ARGS = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
SWIN = EncoderSpec("swin_tiny_patch4_window7_224", 3, 32, args=SWIN_ARGS)


def images_for(spec: EncoderSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, spec.channels, spec.size, spec.size, generator=generator)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "resnet"),
        ("resnet10t", "resnet"),
        ("convnext_atto", "convnext"),
        ("vit_tiny_patch16_224", "vit"),
        ("swin_tiny_patch4_window7_224", "other"),
    ],
)
def test_families(name: str, expected: str) -> None:
    assert family(name) == expected


def test_unknown_names_are_refused_with_close_ones() -> None:
    with pytest.raises(UserError, match=r"encoder\.name='resnet81' is not an architecture.*resnet18"):
        build_encoder(EncoderSpec("resnet81", 3, 32), seed=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_tiny_patch16_224"])
def test_any_number_of_channels(name: str, channels: int) -> None:
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2} if name.startswith("vit") else {}
    spec = EncoderSpec(name, channels, 32, args=args)
    encoder = build_encoder(spec, seed=0).eval()
    features = encoder(images_for(spec))
    assert features.shape == (2, num_features(encoder))
    one_more = images_for(EncoderSpec(name, channels + 1, 32))
    with pytest.raises((RuntimeError, AssertionError)):
        encoder(one_more)


def test_a_vit_takes_the_size_and_patches_of_its_spec_and_averages_all_patches() -> None:
    encoder = build_encoder(VIT, seed=0).eval()
    assert is_vit(encoder)
    assert not is_convnext(encoder)
    tokens = encoder.forward_features(images_for(VIT))
    patches = tokens[:, encoder.num_prefix_tokens :]
    assert patches.shape == (2, 16, 32)
    torch.testing.assert_close(encoder(images_for(VIT)), encoder.fc_norm(patches.mean(1)))


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "convnext_atto"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_stem_has_the_stride_it_promises(name: str, stride: int) -> None:
    args = SMALL_CONVNEXT if name == "convnext_atto" else {}
    spec = EncoderSpec(name, 3, 32, stem_stride=stride, args=args)
    encoder = build_encoder(spec, seed=0).eval()
    seen: list[int] = []
    first_stage = encoder.stages[0] if is_convnext(encoder) else encoder.layer1
    first_stage.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[3]))
    assert feature_map(encoder, images_for(spec)).shape[2:] == (32 // stride // 8,) * 2
    assert seen == [32 // stride]
    if stride == 4 and not is_convnext(encoder):
        plain = build_encoder(EncoderSpec(name, 3, 32), seed=0).eval()
        assert torch.equal(plain(images_for(spec)), encoder(images_for(spec)))


def test_the_seed_alone_decides_the_weights_and_the_shared_generator_is_left_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, again, other = (build_encoder(VIT, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    later = build_encoder(VIT, seed=1).state_dict()
    assert all(torch.equal(first[k], again[k]) and torch.equal(first[k], later[k]) for k in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EncoderSpec("vit_tiny_patch16_224", 3, 32, stem_stride=2), "set encoder.patch_size instead"),
        (EncoderSpec("resnet18", 3, 32, stem_stride=3), "must be 1, 2 or 4"),
        (EncoderSpec("convnext_atto_ols", 3, 32, stem_stride=2), "overlapping stem .* stride of 4 only"),
        (EncoderSpec("resnet18", 3, 32, patch_size=4), "defined for ViT"),
        (EncoderSpec("vit_tiny_patch16_224", 3, 30, patch_size=4), "not a multiple"),
        (EncoderSpec("resnet18", 3, 32, args={"in_chans": 1}), "set by the channels of the data"),
        (EncoderSpec("resnet18", 3, 32, args={"pretrained": True}), "not an argument of the architecture"),
        (EncoderSpec("resnet18", 3, 32, args={"checkpoint_path": "x"}), "not an argument of the architecture"),
        (EncoderSpec("resnet18", 3, 32, args={"depth": 3}), "timm cannot build"),
        (EncoderSpec("resnet18", 3, 32, args={"block": "basic"}), r"timm cannot build .*AttributeError.*encoder\.args"),
        (EncoderSpec("convnext_atto", 3, 32, args={"depths": (1, 1)}), r"timm cannot build .*IndexError"),
        (EncoderSpec("vit_tiny_patch16_224", 3, 32, args={"num_heads": 0}), "timm cannot build .*ZeroDivisionError"),
        (EncoderSpec("vit_tiny_patch16_224", 3, 32, args={"global_pool": "none"}), "timm cannot build"),
    ],
)
def test_impossible_architectures_are_refused(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(spec, seed=0)


def weights_of(spec: EncoderSpec, *, seed: int) -> dict[str, Tensor]:
    return build_encoder(spec, seed=seed).state_dict()


def test_local_weights_are_loaded_in_full_and_what_was_left_over_is_said(tmp_path: Path) -> None:
    given = weights_of(VIT, seed=7)
    save_file({**given, "head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}, tmp_path / "w.safetensors")
    encoder = build_encoder(VIT, seed=0)
    sentence = load_pretrained(encoder, VIT, source=str(tmp_path / "w.safetensors"))
    assert f"loaded {len(given)} of {len(given)} tensors" in sentence
    assert "left out of the file: head.bias, head.weight" in sentence
    assert all(torch.equal(value, given[key]) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_weights_that_do_not_all_fit_are_refused_with_counts_and_change_nothing(tmp_path: Path, fault: str) -> None:
    spec = EncoderSpec("test_resnet", 3, 32)
    given = weights_of(spec, seed=7)
    count = len(given)
    if fault == "missing":
        del given["conv1.0.weight"], given["layer1.0.conv1.weight"]
        message = rf"{count - 2} of {count} tensors of 'test_resnet' fit.*Missing: \['conv1\.0\.weight', 'layer1"
    else:
        shape = tuple(given["conv1.0.weight"].shape)
        given["conv1.0.weight"] = given["conv1.0.weight"][:, :1].contiguous()
        message = rf"{count - 1} of {count} tensors .*other shape: .*conv1\.0\.weight: file \({shape[0]}, 1, 3, 3\)"
    save_file(given, tmp_path / "w.safetensors")
    encoder = build_encoder(spec, seed=0)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_pretrained(encoder, spec, source=str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_files_that_are_absent_or_no_safetensors_are_refused(tmp_path: Path) -> None:
    encoder = build_encoder(VIT, seed=0)
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(encoder, VIT, source=str(tmp_path / "none.safetensors"))
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_pretrained(encoder, VIT, source=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("resnet18", 3, 32, stem_stride=1),
        EncoderSpec("resnet10t", 1, 32, stem_stride=1),
        EncoderSpec("resnet10t", 3, 32, stem_stride=2),
        EncoderSpec("convnext_atto", 3, 32, stem_stride=2, args=SMALL_CONVNEXT),
        VIT,
    ],
    ids=lambda spec: f"{spec.name}-{spec.stem_stride}",
)
def test_stem_edits_turn_timms_model_into_the_encoder(spec: EncoderSpec) -> None:
    encoder = build_encoder(spec, seed=3).eval()
    model = timm.create_model(spec.name, **spec.timm_args())
    exec("\n".join(stem_edits(spec)), {"model": model, "torch": torch})
    model.load_state_dict(encoder.state_dict())
    assert torch.equal(model.eval()(images_for(spec)), encoder(images_for(spec)))


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("test_resnet", 3, 64),
        EncoderSpec("test_convnext", 3, 64),
        SWIN,
        EncoderSpec("mobilenetv3_small_050", 1, 64),  # its head widens the pooled map
    ],
    ids=lambda spec: spec.name,
)
def test_a_map_pooled_by_the_encoders_own_head_is_its_plain_forward(spec: EncoderSpec) -> None:
    encoder = build_encoder(spec, seed=0).eval()
    features = feature_map(encoder, images_for(spec))
    assert features.shape[1] == encoder.num_features
    assert features.shape[2] == features.shape[3]
    pooled = pool_map(encoder, features)
    assert pooled.shape == (2, num_features(encoder))
    torch.testing.assert_close(pooled, encoder(images_for(spec)), rtol=1e-6, atol=1e-6)


def test_a_channels_last_map_keeps_rows_and_columns_in_place() -> None:
    encoder = build_encoder(SWIN, seed=0).eval()
    own = encoder.forward_features(images_for(SWIN))
    assert own.shape == (2, 4, 4, 32)
    assert torch.equal(feature_map(encoder, images_for(SWIN))[1, :, 3, 1], own[1, 3, 1])


def test_encoders_without_a_map_are_refused() -> None:
    class Tokens(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            return images.flatten(2)

    with pytest.raises(UserError, match="needs a ViT or an encoder with a feature map; Tokens gives 3"):
        feature_map(Tokens(), torch.zeros(1, 3, 4, 4))
