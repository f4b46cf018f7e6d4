"""The check that batches here are those of every other machine: order, draws and masks to the bit, views to rounding.

The values written down are those of the definitions in `data/`. Where a change of views is meant, `draws_digest` and
`view_means` give the new ones.
"""

import hashlib

import torch

from ssl_ft.data.masks import sample_mask
from ssl_ft.data.permutation import batch_indices
from ssl_ft.data.views import ViewRecipe, make_views
from ssl_ft.doctor.finding import Finding
from ssl_ft.doctor.subject import noise
from ssl_ft.seeding import uniform

DRAWS_DIGEST = "fc453070940e3fd018c9247dd3f42efa2c449d289c27169bb8d9d140bd73fd64"
VIEW_MEANS = (
    0.00197694832024976,
    -0.00495436207457171,
    -0.00771771526773706,
    -0.00530571431580036,
    0.00146593545073416,
    -0.000183045771759255,
)

# Every kind of change is on, so that each has its say.
_RECIPE = ViewRecipe(size=16, vertical_flip=0.5, quarter_turn=0.5, blur=0.5)
_SEED, _COUNT = 11, 6
# float64 sums in another order; float32 views on a device, whose products may be TF32.
_TOLERANCE, _DEVICE_TOLERANCE = 1e-9, 3e-5


def check_views(device: torch.device) -> Finding:
    """Order, draws, masks and views against the values written down, views also in float32 on the device."""
    if draws_digest() != DRAWS_DIGEST:
        return _failed("order, draws or masks are not those written down: the arithmetic of integers differs here")
    away = _distance(torch.device("cpu"), torch.float64)
    if away > _TOLERANCE:
        return _failed(f"views differ by {away:.1e} from those written down, {_TOLERANCE:g} is rounding")
    away_there = _distance(device, torch.float32)
    if away_there > _DEVICE_TOLERANCE:
        return _failed(f"float32 views on {device.type} differ by {away_there:.1e}, {_DEVICE_TOLERANCE:g} is rounding")
    measured = (
        f"order, draws and masks to the bit ({DRAWS_DIGEST[:8]}), views to {away:.0e}, on {device.type} in float32 "
    )
    return Finding("views", "pass", f"{measured}to {away_there:.0e}")


def _failed(measured: str) -> Finding:
    advice = (
        "runs from here cannot be compared with those of other machines: install torch and ssl_ft again, then tell us"
    )
    return Finding("views", "fail", measured, advice)


def draws_digest() -> str:
    """SHA-256 over the images of three steps of an epoch of a million, their draws and their masks."""
    digest = hashlib.sha256()
    for step in (0, 1, 100_000):
        epoch, indices = batch_indices(step, num_images=1_000_003, batch_size=64, seed=_SEED)
        draws = uniform(indices, seed=_SEED, purpose="view", epoch=epoch, view=1, columns=16)
        mask = sample_mask(indices, num_patches=49, hidden_share=0.75, seed=_SEED, epoch=epoch, view=1)
        for values in (indices, (draws * 2**24).to(torch.int64), mask.to(torch.int64)):
            digest.update(values.contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def view_means(device: torch.device, dtype: torch.dtype) -> list[float]:
    """The mean of each of a few views, pixels weighted at random."""
    images = noise(_COUNT, channels=3, side=20).to(device)
    indices = torch.arange(_COUNT, device=device) * 1000 + 7
    aspects = torch.tensor([0.5, 0.8, 1.0, 1.0, 1.25, 2.0], device=device)
    views = make_views(images, aspects, indices, recipe=_RECIPE, seed=_SEED, epoch=2, view=1, dtype=dtype)
    weights = uniform(indices, seed=_SEED, purpose="weights", columns=views[0].numel()).to(dtype).view_as(views)
    means: list[float] = ((weights - 0.5) * views).mean((1, 2, 3)).tolist()
    return means


def _distance(device: torch.device, dtype: torch.dtype) -> float:
    found = view_means(device, dtype)
    return max(abs(one - other) for one, other in zip(found, VIEW_MEANS, strict=True))
