"""Masked imputation: reference, what may and may not influence the loss, and that hidden pixels stay hidden."""

import pytest
import torch
from torch import nn

from ssl_ft.data.masks import hide, num_hidden, patchify, sample_mask, unpatchify
from ssl_ft.models.decoders import MapDecoder, TokenDecoder
from ssl_ft.models.encoders import EncoderSpec, build_encoder, feature_map, num_features
from ssl_ft.objectives.masked import Imputer, imputation_loss, normalise_patches
from tests.references.losses import masked_error_by_loops

VIT = EncoderSpec("vit_tiny_patch16_224", 3, 16, patch_size=4, args={"depth": 2, "embed_dim": 32, "num_heads": 2})
CONVNET = EncoderSpec("test_resnet", 3, 32)


def build_imputer(kind: str) -> tuple[Imputer, int]:
    spec = VIT if kind == "vit" else CONVNET
    encoder = build_encoder(spec, seed=0)
    decoder: TokenDecoder | MapDecoder
    if kind == "vit":
        decoder = TokenDecoder(32, width=32, depth=1, num_heads=1, num_patches=16, num_out=48)
    else:
        side = feature_map(encoder.eval(), torch.zeros(1, 3, 32, 32)).shape[2]
        decoder = MapDecoder(num_features(encoder), width=16, cell=32 // side, channels=3)
    return Imputer(encoder, decoder, patch=4).double().eval(), spec.size


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_the_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(3, 8, 5, generator=generator, dtype=torch.float64)
    mask = sample_mask(torch.arange(3), num_patches=8, hidden_share=0.6, seed=seed, epoch=0, view=0)
    ours, slow = imputation_loss(prediction, patches, mask), masked_error_by_loops(prediction, patches, mask)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(ours, prediction), torch.autograd.grad(slow, prediction), rtol=1e-9, atol=1e-9
    )


def test_targets_on_visible_patches_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    prediction, patches = (torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    mask = sample_mask(torch.arange(2), num_patches=6, hidden_share=0.5, seed=0, epoch=0, view=0)
    changed = torch.where(mask.unsqueeze(2), patches, patches + 100)
    assert imputation_loss(prediction, patches, mask) == imputation_loss(prediction, changed, mask)
    assert imputation_loss(prediction, patches, mask) != imputation_loss(prediction, patches + 1, mask)


@pytest.mark.parametrize("kind", ["vit", "convnet"])
def test_hidden_pixels_never_reach_the_encoder(kind):
    imputer, size = build_imputer(kind)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    patches = (size // 4) ** 2
    mask = sample_mask(torch.arange(2), num_patches=patches, hidden_share=0.75, seed=0, epoch=0, view=0)
    pixels = unpatchify(
        mask.unsqueeze(2).expand(-1, -1, 48).double(), patch=4, channels=3, height=size, width=size
    ).bool()
    noise = torch.where(pixels, images + torch.randn_like(images), images)
    for before, after in zip(imputer(images, mask), imputer(noise, mask), strict=True):
        assert torch.equal(before, after)
    seen = torch.where(pixels, images, images + 1)
    assert not torch.equal(imputer(images, mask)[0], imputer(seen, mask)[0])


@pytest.mark.parametrize("kind", ["vit", "convnet"])
def test_every_parameter_is_trained(kind):
    imputer, size = build_imputer(kind)
    imputer.train()
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = sample_mask(torch.arange(4), num_patches=(size // 4) ** 2, hidden_share=0.75, seed=0, epoch=0, view=0)
    prediction, _ = imputer(images, mask)
    imputation_loss(prediction, patchify(images, patch=4), mask).backward()
    assert [name for name, p in imputer.named_parameters() if p.grad is None] == []


def test_nothing_hidden_equals_the_plain_forward_of_a_vit():
    from ssl_ft.models.visible import visible_tokens

    encoder = build_encoder(VIT, seed=0).double().eval()
    encoder.fc_norm = nn.Identity()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, places = visible_tokens(encoder, images, torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(places, torch.arange(16).expand(2, -1))
    torch.testing.assert_close(tokens.mean(1), encoder(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_masks_hide_exactly_so_many_and_differ_between_images_epochs_and_views(seed):
    def draw(**key: int) -> torch.Tensor:
        return sample_mask(
            torch.arange(6), num_patches=49, hidden_share=0.75, **{"seed": seed, "epoch": 0, "view": 0, **key}
        )

    mask = draw()
    assert mask.sum(1).tolist() == [num_hidden(49, hidden_share=0.75)] * 6 == [37] * 6
    assert len({tuple(row.tolist()) for row in mask}) == 6
    assert torch.equal(mask, draw())
    assert not any(torch.equal(mask, draw(**other)) for other in ({"epoch": 1}, {"view": 1}, {"seed": seed + 1}))


def test_masks_hide_every_patch_equally_often():
    mask = sample_mask(torch.arange(20000), num_patches=16, hidden_share=0.25, seed=0, epoch=0, view=0)
    # Standard deviation of a share of 0.25 over 20,000 images is 0.003; five of them.
    assert (mask.double().mean(0) - 0.25).abs().max() < 0.016


def test_unpatchify_undoes_patchify_and_the_order_is_row_column_channel():
    images = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patchify(images, patch=4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(unpatchify(patches, patch=4, channels=3, height=8, width=12), images)
    second = images[0, :, 0:4, 4:8]
    assert torch.equal(patches[0, 1], second.permute(1, 2, 0).flatten())


def test_hide_zeroes_hidden_patches_alone():
    images, mask = torch.ones(1, 2, 4, 6), torch.tensor([[True, False, False, False, False, True]])
    hidden = hide(images, mask, patch=2)
    assert hidden[:, :, :2, :2].sum() == 0
    assert hidden[:, :, 2:, 4:].sum() == 0
    assert hidden.sum() == 2 * (24 - 8)


def test_normalised_targets_use_the_unbiased_variance():
    patches = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]], dtype=torch.float64)
    expected = (patches - 1.5) / (5 / 3 + 1e-6) ** 0.5
    torch.testing.assert_close(normalise_patches(patches), expected, rtol=1e-12, atol=1e-12)


def test_one_patch_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 patches"):
        num_hidden(1, hidden_share=0.5)
