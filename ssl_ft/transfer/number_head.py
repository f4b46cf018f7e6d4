"""Regression targets standardised for training, and the head afterwards made to speak the user's units."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True, eq=False)
class NumberScale:
    """Mean and spread of each target among the images trained on.

    Attributes:
        mean: float64 [K].
        spread: float64 [K], positive.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    def standardise(self, targets: NDArray[np.float32]) -> NDArray[np.float32]:
        """(t − mean) / spread, float32 [N, K]; missing ones stay missing."""
        return np.asarray((targets - self.mean) / self.spread, dtype=np.float32)


def number_scale(targets: NDArray[np.float32]) -> NumberScale:
    """The scale of targets [N, K] with at least one value each; the spread of a single value is taken for 1."""
    mean = np.nanmean(targets.astype(np.float64), axis=0)
    spread = np.nanstd(targets.astype(np.float64), axis=0)
    return NumberScale(mean, np.where(spread > 0, spread, 1.0))


@torch.no_grad()
def fold_scale(head: nn.Linear, scale: NumberScale) -> None:
    """Change the head so that what was its output z becomes z · spread + mean.

    Args:
        head: [D] -> [K], with a bias.
        scale: of the targets it was trained on.
    """
    spread, mean = (torch.from_numpy(part).to(head.weight.device) for part in (scale.spread, scale.mean))
    head.bias.copy_(head.bias.double() * spread + mean)
    head.weight.copy_(head.weight.double() * spread.unsqueeze(1))


@torch.no_grad()
def unfold_scale(head: nn.Linear, scale: NumberScale) -> None:
    """Undo `fold_scale`: what was the head's output t becomes (t − mean) / spread, as training has it."""
    spread, mean = (torch.from_numpy(part).to(head.weight.device) for part in (scale.spread, scale.mean))
    head.bias.copy_((head.bias.double() - mean) / spread)
    head.weight.copy_(head.weight.double() / spread.unsqueeze(1))
