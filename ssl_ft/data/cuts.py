"""Views cut out of a full picture by the worker that decoded it: crop, resize, turn and flip.

Blur and colour follow for the whole batch on its device, in `views.finish_views`. Sets that are decoded once into
squares have their views made on the device altogether, by `views.make_views`.
"""

import numpy as np
import torch
from torch import Tensor

from ssl_ft.data.images import Pixels, resize_boxes
from ssl_ft.data.views import ViewRecipe, crop_boxes


def cut_views(image: Pixels, draws_VK: Tensor, *, recipe: ViewRecipe) -> Pixels:
    """Every view of one image, with the geometry that `views.make_views` would give it.

    Args:
        image: uint8 [C, H, W], the full picture.
        draws_VK: float64 [V, 16], a row of `views.view_draws` for each view.
        recipe: ranges of the parameters.

    Returns:
        uint8 [V, C, size, size].
    """
    height, width = image.shape[1:]
    aspects = torch.full((len(draws_VK),), width / height, dtype=draws_VK.dtype)
    shares = torch.stack(crop_boxes(draws_VK, aspects, recipe=recipe), dim=1).tolist()
    boxes = [
        (left * width, top * height, (left + wide) * width, (top + high) * height) for left, top, wide, high in shares
    ]
    views = np.empty((len(boxes), image.shape[0], recipe.size, recipe.size), np.uint8)
    cuts = resize_boxes(image, boxes, recipe.size)
    for view, cut, draws in zip(views, cuts, draws_VK.tolist(), strict=True):
        if draws[6] < recipe.quarter_turn:
            cut = cut.transpose(0, 2, 1)
        if draws[4] < recipe.horizontal_flip:
            cut = cut[:, :, ::-1]
        if draws[5] < recipe.vertical_flip:
            cut = cut[:, ::-1]
        view[:] = cut
    return views
