"""How unsure a classifier is of an image, from its probabilities: 0 is sure, 1 as unsure as can be."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Floats = NDArray[np.float64]


def margin_doubt(shares: Floats) -> Floats:
    """1 − (largest − second largest probability), float64 [N], of probabilities [N, C] with C >= 2."""
    second, first = np.partition(shares, -2, axis=1)[:, -2:].T
    doubt: Floats = 1 - (first - second)
    return doubt


def entropy_doubt(shares: Floats) -> Floats:
    """Entropy over log C, float64 [N], of probabilities [N, C] with C >= 2."""
    doubt: Floats = entr(shares).sum(axis=1) / np.log(shares.shape[1])
    return doubt
