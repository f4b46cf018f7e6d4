"""Views cut where images are decoded: the geometry, the draws and the colours of views made on the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_ft.data import batches as module
from ssl_ft.data.batches import Batch, Cutting, ViewMaker, batches
from ssl_ft.data.cuts import cut_views
from ssl_ft.data.views import ViewRecipe, crop_boxes, finish_views, make_views, resample_matrix, view_draws
from tests.pools import batch_of, noise_images, store_of, view_maker

PLACED = ViewRecipe(size=24, vertical_flip=0.5, quarter_turn=0.5, jitter=0.0, grey=0.0)
ROUNDING = 1.5 / 255  # Pillow rounds to whole numbers after the columns and again after the rows


def draws_of(index: int, *, views: int) -> torch.Tensor:
    return torch.cat([view_draws(torch.tensor([index]), seed=1, epoch=2, view=view) for view in range(views)])


@pytest.mark.parametrize("index", range(12))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_square_pictures_have_the_views_the_device_makes(index, channels):
    image = noise_images(1, side=40, channels=channels, seed=index)[0].transpose(2, 0, 1)
    cuts = cut_views(image, draws_of(index, views=2), recipe=PLACED)
    assert cuts.shape == (2, channels, 24, 24)
    for view in (0, 1):
        made = make_views(
            torch.from_numpy(image)[None],
            torch.ones(1),
            torch.tensor([index]),
            recipe=PLACED,
            seed=1,
            epoch=2,
            view=view,
        )
        assert (torch.from_numpy(cuts[view]).float() / 255 - made[0]).abs().max() < ROUNDING


@pytest.mark.parametrize("index", range(6))
def test_oblong_pictures_are_cut_in_their_own_pixels(index):
    """Reference: the resampling matrices applied to each axis of the picture as it is."""
    recipe = replace(PLACED, quarter_turn=0.0, horizontal_flip=0.0, vertical_flip=0.0)
    image = noise_images(1, side=60, seed=index)[0].transpose(2, 0, 1)[:, :, :33]
    draws = draws_of(index, views=1)
    left, top, width, height = crop_boxes(draws, torch.tensor([33 / 60], dtype=torch.float64), recipe=recipe)
    columns = resample_matrix(left * 33, width * 33, side=33, size=24)[0]
    rows = resample_matrix(top * 60, height * 60, side=60, size=24)[0]
    expected = rows @ (torch.from_numpy(image.copy()).double() / 255) @ columns.T
    cut = torch.from_numpy(cut_views(image, draws, recipe=recipe)[0]).double() / 255
    assert (cut - expected).abs().max() < ROUNDING


@pytest.mark.parametrize("view", [0, 1])
def test_blur_and_colour_are_those_of_the_device(view):
    """With whole pictures of the views' size the cut is exact, and everything after it must be too."""
    recipe = ViewRecipe(size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), blur=0.5, blur_sigma=(0.5, 2.0))
    images = torch.from_numpy(noise_images(8, side=16)).permute(0, 3, 1, 2).contiguous()
    indices = torch.arange(8) * 5
    draws = torch.stack([view_draws(indices, seed=4, epoch=1, view=v) for v in (0, 1)], dim=1)
    cuts = torch.from_numpy(
        np.stack([cut_views(i, d, recipe=recipe) for i, d in zip(images.numpy(), draws, strict=True)])
    )
    options = {"recipe": recipe, "seed": 4, "epoch": 1, "view": view, "dtype": torch.float64}
    made = make_views(images, torch.ones(8), indices, **options)
    finished = finish_views(cuts[:, view], indices, **options)
    torch.testing.assert_close(finished, made, rtol=0, atol=2e-6)  # taps of the blur end at five sigma


def test_large_batches_are_worked_on_in_parts_that_change_nothing(monkeypatch):
    batch, views = batch_of(7, side=16), view_maker(16)
    whole = views(batch, view=1)
    monkeypatch.setattr(module, "_CACHED_BYTES", 2 * 3 * 16 * 16 * 8)
    torch.testing.assert_close(views(batch, view=1), whole, rtol=0, atol=1e-15)


def test_batches_of_cuts_depend_on_the_step_alone_and_split_as_images_do():
    images = noise_images(20, side=30)

    def take(start: int, stop: int, workers: int) -> list[Batch]:
        store = store_of(images, is_decoded=False)
        options = {"batch_size": 8, "seed": 3, "start_step": start, "num_steps": stop, "workers": workers}
        return list(batches(store, **options, cutting=Cutting(PLACED, 2)))

    whole = take(0, 4, 2)
    for late, early in zip(take(2, 4, 0), whole[2:], strict=True):
        assert torch.equal(late.cuts_NBCVV, early.cuts_NBCVV)
    batch, views = whole[0], ViewMaker(PLACED, (0.5,) * 3, (0.2,) * 3, seed=3)
    assert batch.images_BCSS is None
    for view in (0, 1):
        parts = torch.cat([views(part, view=view) for part in batch.to(torch.device("cpu")).split(4)])
        torch.testing.assert_close(parts, views(batch, view=view), rtol=0, atol=0)


def test_a_decoded_pool_leaves_views_to_the_device():
    store = store_of(noise_images(8, side=30))
    options = {"batch_size": 8, "seed": 3, "start_step": 0, "num_steps": 1, "workers": 0}
    (batch,) = batches(store, **options, cutting=Cutting(PLACED, 2))
    assert batch.cuts_NBCVV is None
    assert batch.images_BCSS is not None
