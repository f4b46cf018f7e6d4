"""CORAL: features of source and target held to one covariance. A pure function; target batches come in `aligned.py`."""

import torch
from torch import Tensor


def coral(source_ND: Tensor, target_MD: Tensor) -> Tensor:
    """‖Cₛ − Cₜ‖² / (4 D²), squared Frobenius norm, covariances over the rows with N − 1; a scalar >= 0.

    Sun & Saenko 2016, "Deep CORAL", equations 1 to 3. Means play no part. Gradients flow to both sides.

    Args:
        source_ND: float [N, D], N >= 2.
        target_MD: float [M, D], M >= 2.
    """
    width = source_ND.shape[1]
    return (_covariance(source_ND) - _covariance(target_MD)).square().sum() / (4 * width**2)


def _covariance(features_ND: Tensor) -> Tensor:
    wide = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    with torch.autocast(wide.device.type, enabled=False):  # it would round the product to 8 bits of mantissa
        centred = wide - wide.mean(0)
        return centred.T @ centred / (len(wide) - 1)
