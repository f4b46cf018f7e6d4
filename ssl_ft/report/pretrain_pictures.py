"""Contact sheets of a pretraining: views as the encoder saw them, and what was imputed where patches were hidden."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.data.batches import Batch
from ssl_ft.data.masks import hide, patchify, unpatchify
from ssl_ft.objectives.classified import Classified
from ssl_ft.objectives.joint import Joint, SharedJoint
from ssl_ft.objectives.masked import Masked
from ssl_ft.objectives.rotation import NUM_TURNS, Rotation, turns
from ssl_ft.objectives.simclr import SimCLR
from ssl_ft.pretraining import Pretraining
from ssl_ft.report.pictures import picture_grid

_NUM_IMAGES = 8


def write_pretrain_pictures(work: Pretraining, folder: Path) -> None:
    """Write `views.png` and, for a masked objective, `reconstruction.png`, of a few evenly spread images."""
    count = min(_NUM_IMAGES, len(work.store))
    indices = torch.arange(count) * len(work.store) // count
    images, aspects = work.store.fetch(indices)
    batch = Batch(images, aspects, indices, epoch=0).to(work.device)
    objective = work.objective
    makers = {
        SimCLR: lambda o: o.views,
        Masked: lambda o: o.views,
        Joint: lambda o: o.simclr.views,
        SharedJoint: lambda o: o.masked.views,
        Rotation: lambda o: o.views,
        Classified: lambda o: o.views,
    }
    views = makers[type(objective)](objective)
    shown = torch.nn.functional.interpolate(images.float(), size=views.recipe.size, mode="bilinear", antialias=True)
    pixels, names = [views.pixels(batch, view=view) for view in (0, 1)], ["view 1", "view 2"]
    caption = "Images of the pool, squashed to squares, and two views of each as drawn in the first epoch."
    if isinstance(objective, Rotation):
        pixels, names = list(turns(pixels[0]).chunk(NUM_TURNS)), [f"{90 * turn} degrees" for turn in range(NUM_TURNS)]
        caption = "Images of the pool, squashed to squares, and a view of each in the four turns to be told apart."
    rows = [_bytes(each) for each in (shown / 255, *pixels)]
    picture_grid(rows, folder / "views.png", caption=caption, row_names=["image", *names])
    if isinstance(objective, Masked):
        _write_reconstruction(objective, batch, folder)
    elif isinstance(objective, (Joint, SharedJoint)):
        _write_reconstruction(objective.masked, batch, folder)


@torch.no_grad()
def _write_reconstruction(masked: Masked, batch: Batch, folder: Path) -> None:
    patch = masked.imputer.patch
    was_training = masked.training
    masked.eval()
    images, mask = masked.views(batch, view=0), masked.mask(batch, view=0)
    prediction, _ = masked.imputer(images, mask)
    masked.train(was_training)
    patches = patchify(images, patch=patch)
    prediction = prediction.to(patches.dtype)
    caption = "One view, what the encoder saw of it, and the visible patches with the imputed ones."
    if masked.is_target_normalised:
        mean, std = patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()
        prediction = prediction * std + mean
        caption += " The model predicts normalised patches; brightness and contrast here are the true patch statistics."
    joined = torch.where(mask.unsqueeze(2), prediction, patches)
    height, width = images.shape[2:]
    whole = unpatchify(joined, patch=patch, channels=images.shape[1], height=height, width=width)
    rows = [_bytes(_pixels(x, masked)) for x in (images, hide(images, mask, patch=patch), whole)]
    picture_grid(rows, folder / "reconstruction.png", caption=caption, row_names=["view", "visible", "imputed"])


def _pixels(normalised: Tensor, masked: Masked) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, std = (normalised.new_tensor(v).view(shape) for v in (masked.views.mean, masked.views.std))
    return normalised * std + mean


def _bytes(pixels: Tensor) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return images.transpose(0, 2, 3, 1)
