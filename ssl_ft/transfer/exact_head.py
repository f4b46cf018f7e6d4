"""The exact linear probe as the head of a classifier: solved on features, its standardisation folded into weights.

The solver is `evaluate/probe.py`; which images its features come from is decided in `build/`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.evaluate.probe import LinearProbe, standardise

# In place of the probe's −inf for a class without labels: softmax makes 0 of it, and its gradient stays a number.
_NEVER = -1e4


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What features are standardised by.

    Attributes:
        mean: float64 [D].
        scale: float64 [D].
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


def feature_statistics(features: NDArray[np.float32]) -> FeatureStatistics:
    """Mean and scale of features [N, D] of images whose labels need not be known."""
    return FeatureStatistics(*standardise(features))


@torch.no_grad()
def bake_probe(head: nn.Linear, probe: LinearProbe) -> None:
    """Fill the head so that head(features) has the probe's logits, up to float32.

    Args:
        head: [D] -> [C], with a bias.
        probe: on features that have not been standardised.
    """
    weights = probe.weights / probe.scale[:, None]
    bias = probe.bias - probe.mean @ weights
    head.weight.copy_(torch.from_numpy(weights.T))
    head.bias.copy_(torch.from_numpy(np.where(np.isfinite(bias), bias, _NEVER)))
