"""Mixup and cutmix: each image of a batch mixed with another of it, and their targets alike, on the device.

All draws are functions of (seed, epoch, image): which images are partners, how much of each there is, where the
rectangle lies. They do not depend on the place in the batch, so resumed runs and any number of ranks see the same.

Shape suffixes: B images, C channels, V side of the view.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ssl_ft import dist
from ssl_ft.seeding import uniform

# Cells of the table of Beta's quantiles; between them it is taken for straight. Every 4096th of the probability is
# exact, which no training could tell from the distribution itself.
_CELLS = 4096


@dataclass(frozen=True)
class Mixing:
    """How images are mixed; where both are on, each image takes one of them with equal chance.

    Attributes:
        mixup: α of mixup's Beta(α, α) (Zhang et al. 2018); 0 turns it off.
        cutmix: α of cutmix's (Yun et al. 2019); 0 turns it off.
        seed: the run's seed.
    """

    mixup: float
    cutmix: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse negative parameters."""
        assert min(self.mixup, self.cutmix) >= 0, "Beta's parameters are positive, 0 is off"


def mix(
    views_BCVV: Tensor, targets_BK: Tensor, indices_B: Tensor, *, mixing: Mixing, epoch: int
) -> tuple[Tensor, Tensor]:
    """Views and targets, each mixed with its partner's.

    A target that is missing (NaN) in either is missing in the mixture, save where the partner has no share in it.

    Args:
        views_BCVV: float [B, C, V, V] of this rank.
        targets_BK: float [B, K].
        indices_B: int64 [B], numbers of the images.
        mixing: how.
        epoch: which pass over the images.

    Returns:
        Both of the same shapes.
    """
    if mixing.mixup == 0 and mixing.cutmix == 0:
        return views_BCVV, targets_BK
    own = slice(dist.rank() * len(indices_B), (dist.rank() + 1) * len(indices_B))
    everyone = _joined(indices_B)
    partners = mixing_partners(everyone, seed=mixing.seed, epoch=epoch)[own]
    other_views, other_targets = _joined(views_BCVV)[partners], _joined(targets_BK)[partners]
    shares, boxes = _shares_and_boxes(indices_B, mixing=mixing, epoch=epoch, side=views_BCVV.shape[-1])
    is_cut = boxes.any(2).any(1)
    whole = shares.to(views_BCVV).view(-1, 1, 1, 1)
    blended = whole * views_BCVV + (1 - whole) * other_views
    pasted = torch.where(boxes.unsqueeze(1), other_views, views_BCVV)
    uses_cutmix = _uses_cutmix(indices_B, mixing=mixing, epoch=epoch)
    views = torch.where(uses_cutmix.view(-1, 1, 1, 1), pasted, blended)
    area = boxes.to(targets_BK).mean((1, 2))
    share = torch.where(uses_cutmix, 1 - area, shares.to(targets_BK)).unsqueeze(1)
    is_alone = torch.where(uses_cutmix, ~is_cut, shares == 1).unsqueeze(1)
    targets = torch.where(is_alone, targets_BK, share * targets_BK + (1 - share) * other_targets)
    return views, targets


def mixing_partners(indices_B: Tensor, *, seed: int, epoch: int) -> Tensor:
    """The partner of each place, int64 [B]: one round through all places in an order drawn by the images in them.

    So every image is a partner once, and none its own where there are two or more.
    """
    draws = uniform(indices_B, seed=seed, purpose="mix partner", epoch=epoch)[:, 0]
    # By image first, so that equal draws, as of an image that is there twice, fall the same way on any rank.
    by_image = torch.argsort(indices_B, stable=True)
    order = by_image[torch.argsort(draws[by_image], stable=True)]
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return partners


def beta_draws(indices_B: Tensor, *, alpha: float, seed: int, purpose: str, epoch: int) -> Tensor:
    """Draws of Beta(α, α), float32 [B] in [0, 1], one an image: its quantiles at uniform draws."""
    quantiles = _beta_quantiles(alpha, indices_B.device)
    place = uniform(indices_B, seed=seed, purpose=purpose, epoch=epoch)[:, 0] * _CELLS
    cell = place.long()
    low, high = quantiles[cell], quantiles[cell + 1]
    return low + (high - low) * (place - cell)


@lru_cache(maxsize=8)
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    places = np.linspace(0, 1, _CELLS + 1)
    return torch.from_numpy(np.asarray(betaincinv(alpha, alpha, places))).float().to(device)


def _uses_cutmix(indices_B: Tensor, *, mixing: Mixing, epoch: int) -> Tensor:
    if mixing.mixup == 0 or mixing.cutmix == 0:
        return torch.full_like(indices_B, mixing.cutmix > 0, dtype=torch.bool)
    return uniform(indices_B, seed=mixing.seed, purpose="mix kind", epoch=epoch)[:, 0] < 0.5


def _shares_and_boxes(indices_B: Tensor, *, mixing: Mixing, epoch: int, side: int) -> tuple[Tensor, Tensor]:
    """Mixup's share of the image itself, float32 [B], and cutmix's rectangle, bool [B, V, V], True = the partner's.

    The rectangle is Yun et al.'s: sides √(1 − λ) of the image's, about a centre drawn uniformly, cut off at the border.
    """
    seed, ones = mixing.seed, torch.ones(len(indices_B), device=indices_B.device)
    shares, sizes = ones, torch.zeros_like(ones)
    if mixing.mixup > 0:
        shares = beta_draws(indices_B, alpha=mixing.mixup, seed=seed, purpose="mixup share", epoch=epoch)
    if mixing.cutmix > 0:
        kept = beta_draws(indices_B, alpha=mixing.cutmix, seed=seed, purpose="cutmix share", epoch=epoch)
        sizes = ((1 - kept).sqrt() * side).floor()
    centres = (uniform(indices_B, seed=seed, purpose="cutmix centre", epoch=epoch, columns=2) * side).floor()
    pixels = torch.arange(side, device=indices_B.device).view(1, 1, -1)
    first = (centres - (sizes / 2).floor().unsqueeze(1)).unsqueeze(2)
    is_in = (pixels >= first) & (pixels < first + sizes.view(-1, 1, 1))
    return shares, is_in[:, 0].unsqueeze(2) & is_in[:, 1].unsqueeze(1)


def _joined(x: Tensor) -> Tensor:
    """The same of all ranks, in their order."""
    return dist.gather_with_gradient(x).flatten(0, 1).detach()
