"""Views: geometry against Pillow, colour against formulas, per-image draws, and nothing that depends on the batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_ft.data.views import ViewRecipe, _hue_matrix, make_views, normalise, resample_matrix

PLAIN = ViewRecipe(size=16, horizontal_flip=0.0, jitter=0.0, grey=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))


def pictures(count: int, side: int, *, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear", align_corners=True)
    return (smooth * 255).round().to(torch.uint8)


def views_of(images: Tensor, recipe: ViewRecipe, **key: int) -> Tensor:
    count = len(images)
    counters = {"seed": 0, "epoch": 0, "view": 0, **key}
    return make_views(images, torch.ones(count), torch.arange(count), recipe=recipe, dtype=torch.float64, **counters)


@pytest.mark.parametrize(("side", "size"), [(32, 16), (16, 16), (12, 16), (40, 13), (7, 3)])
def test_whole_image_is_resized_as_pillow_does(side, size):
    images = pictures(3, side)
    ours = views_of(images, replace(PLAIN, size=size))
    for image, view in zip(images, ours, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.asarray(pillow).copy()).permute(2, 0, 1) / 255
        # Pillow rounds to whole levels after each axis: two halves of 1/255.
        assert (view - expected).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(("start", "length"), [(0.0, 8.0), (5.0, 20.0), (3.25, 11.5), (31.0, 1.0)])
def test_resampling_weights_sum_to_one_and_keep_a_ramp(start, length):
    matrix = resample_matrix(torch.tensor([start]).double(), torch.tensor([length]).double(), side=32, size=6)[0]
    assert matrix.sum(1) == pytest.approx(np.ones(6))
    assert (matrix >= 0).all()
    centres = start + (np.arange(6) + 0.5) * length / 6
    ramp = matrix @ (torch.arange(32).double() + 0.5)
    inside = (centres > 1.5 * max(1, length / 6)) & (centres < 32 - 1.5 * max(1, length / 6))
    # A triangle sampled at whole pixels is a little off centre where it spans no whole number of them.
    assert ramp.numpy()[inside] == pytest.approx(centres[inside], abs=0.05)


def test_flips_mirror_each_image_by_its_own_draw():
    images = pictures(64, 16)
    upright = views_of(images, PLAIN)
    flipped = views_of(images, replace(PLAIN, horizontal_flip=0.5))
    is_mirrored = [torch.allclose(f, u.flip(2)) for f, u in zip(flipped, upright, strict=True)]
    is_same = [torch.allclose(f, u) for f, u in zip(flipped, upright, strict=True)]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 16 < sum(is_mirrored) < 48
    torch.testing.assert_close(views_of(images, replace(PLAIN, vertical_flip=1.0)), upright.flip(2))


def test_quarter_turns_and_flips_reach_all_eight_orientations():
    image = pictures(1, 16).expand(400, -1, -1, -1)
    turned = views_of(image, replace(PLAIN, quarter_turn=0.5, horizontal_flip=0.5, vertical_flip=0.5))
    upright = views_of(image[:1], PLAIN)[0]
    orientations = [torch.rot90(x, k, (1, 2)) for x in (upright, upright.flip(2)) for k in range(4)]
    counts = [sum(torch.allclose(t, o, atol=1e-9) for t in turned) for o in orientations]
    assert sum(counts) == 400
    assert min(counts) > 20


def test_a_crop_keeps_shapes_of_a_squashed_image():
    # A circle in a 2:1 image, squashed to a square, is a circle again in a crop that honours the aspect.
    side, aspect = 64, 2.0
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    disc = ((x - 32) * aspect) ** 2 + (y - 32) ** 2 < 10**2
    image = (disc * 255).to(torch.uint8).expand(1, 3, -1, -1)
    recipe = replace(PLAIN, size=64, scale=(0.5, 0.5))
    view = make_views(image, torch.tensor([aspect]), torch.tensor([0]), recipe=recipe, seed=0, epoch=0, view=0)
    on = view[0, 0] > 0.5
    width, height = int(on.any(0).sum()), int(on.any(1).sum())
    assert abs(width - height) <= 2
    assert height == pytest.approx(20, abs=2)  # the crop covers the full height of the square


def test_brightness_contrast_and_saturation_by_formula():
    images = 64 + pictures(1, 16) // 2  # far enough from black and white that nothing is clipped
    recipe = replace(PLAIN, jitter=1.0, brightness=0.3, contrast=0.0, saturation=0.0, hue=0.0)
    ratio = views_of(images, recipe) / views_of(images, PLAIN)
    assert ratio.std() < 1e-9
    assert 0.7 <= ratio.mean() <= 1.3
    contrast = views_of(images, replace(recipe, brightness=0.0, contrast=0.3))
    plain = views_of(images, PLAIN)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    mean = (plain * luma).sum(1).mean()
    factor = ((contrast - mean) / (plain - mean)).flatten()
    assert factor.std() < 1e-6
    assert abs(factor.mean() - 1) <= 0.3
    saturation = views_of(images, replace(recipe, brightness=0.0, saturation=0.5))
    torch.testing.assert_close((saturation * luma).sum(1), (plain * luma).sum(1))
    assert not torch.allclose(saturation, plain)


def test_grey_drops_colour_and_keeps_luma():
    grey = views_of(pictures(4, 16), replace(PLAIN, grey=1.0))
    assert torch.allclose(grey[:, 0], grey[:, 1])
    assert torch.allclose(grey[:, 1], grey[:, 2])


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.25, 0.5])
def test_hue_turns_colour_and_leaves_grey_alone(turns):
    matrix = _hue_matrix(torch.tensor([turns], dtype=torch.float64))[0]
    torch.testing.assert_close(matrix.sum(1), torch.ones(3, dtype=torch.float64))
    back = _hue_matrix(torch.tensor([-turns], dtype=torch.float64))[0]
    torch.testing.assert_close(back @ matrix, torch.eye(3, dtype=torch.float64))


def test_blur_spreads_a_point_by_sigma():
    images = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    recipe = replace(PLAIN, size=33, blur=1.0, blur_sigma=(1.5, 1.5))
    spot = views_of(images, recipe)[0, 0]
    places = torch.arange(33, dtype=torch.float64)
    assert spot.sum() == pytest.approx(1.0)
    variance = (spot.sum(0) * (places - 16) ** 2).sum()
    # The point is a triangle one pixel wide before it is blurred; its own variance is below 0.2.
    assert math.sqrt(variance) == pytest.approx(1.5, abs=0.07)


def test_views_depend_on_the_image_number_alone_not_on_the_batch():
    images, recipe = pictures(6, 20), ViewRecipe(size=16, blur=0.5, vertical_flip=0.5, quarter_turn=0.5)
    whole = views_of(images, recipe)
    pair = make_views(
        images[[4, 1]], torch.ones(2), torch.tensor([4, 1]), recipe=recipe, seed=0, epoch=0, view=0, dtype=torch.float64
    )
    torch.testing.assert_close(pair, whole[[4, 1]], rtol=1e-12, atol=1e-12)
    for key in ({"view": 1}, {"epoch": 1}, {"seed": 1}):
        assert not torch.allclose(views_of(images, recipe, **key), whole)


@pytest.mark.parametrize("seed", range(10))
def test_crops_stay_inside_and_values_in_range(seed):
    images = torch.full((32, 3, 20, 20), 255, dtype=torch.uint8)
    geometry = replace(PLAIN, scale=(0.05, 1.0), ratio=(0.5, 2.0))
    # A crop that left a white image would bring in something darker.
    torch.testing.assert_close(views_of(images, geometry, seed=seed), torch.ones(32, 3, 16, 16, dtype=torch.float64))
    jittered = views_of(pictures(32, 20), ViewRecipe(size=16, brightness=0.8, contrast=0.8), seed=seed)
    assert jittered.min() >= 0
    assert jittered.max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts(channels):
    recipe = ViewRecipe(size=16, saturation=0.0, hue=0.0, grey=0.0)
    views = views_of(pictures(4, 16, channels=channels), recipe)
    assert views.shape == (4, channels, 16, 16)
    assert torch.isfinite(views).all()


def test_normalise():
    views = torch.full((1, 2, 1, 1), 0.5)
    assert normalise(views, mean=(0.5, 0.25), std=(1.0, 0.5)).flatten().tolist() == [0.0, 0.5]
