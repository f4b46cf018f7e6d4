"""Label-free signs of health of an embedding during pretraining: a tensor in, one float out.

All work on the embeddings given, on any device, in float64 on the CPU, so numbers do not depend on the device. Each is
nan when an embedding is not finite. Not here: deciding what to do about a collapse.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def embedding_std(z_ND: Tensor) -> float:
    """Spread of the directions, in [0, 1]: 1 for embeddings spread evenly over the sphere, 0 when all point one way.

    It is the standard deviation (over N, population form) of each coordinate of the L2-normalised embeddings, averaged
    over coordinates and multiplied by √D. Norms do not count.
    """
    unit_ND = F.normalize(_prepared(z_ND), dim=1)
    return float(unit_ND.std(dim=0, correction=0).mean() * math.sqrt(unit_ND.shape[1]))


@torch.no_grad()
def rank_me(z_ND: Tensor) -> float:
    """Effective number of dimensions in use, in [1, min(N, D)]; 0 where all embeddings are zero.

    Garrido et al. 2023, equations 1 and 2: exp of the entropy of the singular values divided by their sum, embeddings
    neither centred nor normalised. The paper adds 1e-7 to each share to keep the logarithm finite; here a share of zero
    contributes its limit, zero, so that D equal singular values give D exactly.
    """
    z_ND = _prepared(z_ND)
    if not torch.isfinite(z_ND).all():
        return math.nan
    singular_values = torch.linalg.svdvals(z_ND)
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


@torch.no_grad()
def alignment(first_ND: Tensor, second_ND: Tensor) -> float:
    """Mean squared distance, in [0, 4], of the L2-normalised embeddings of two views; row n of both is image n.

    Wang & Isola 2020 with exponent 2. Low is good only together with a low `uniformity`.
    """
    distances = F.normalize(_prepared(first_ND), dim=1) - F.normalize(_prepared(second_ND), dim=1)
    return float(distances.square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(z_ND: Tensor) -> float:
    """Log of the mean of exp(−2 · squared distance) over all pairs of N >= 2 L2-normalised embeddings, in [−8, 0].

    Wang & Isola 2020 with t = 2: 0 when all point one way, about −4 when spread evenly over the sphere of a large D.
    Memory grows with N²: pass a few thousand rows.
    """
    assert len(z_ND) >= 2, "uniformity compares pairs"
    squared = torch.pdist(F.normalize(_prepared(z_ND), dim=1)).square()
    return float(torch.logsumexp(-2.0 * squared, dim=0) - math.log(len(squared)))


def _prepared(z_ND: Tensor) -> Tensor:
    assert z_ND.ndim == 2, "embeddings are [N, D]"
    assert z_ND.numel(), "a monitor needs embeddings"
    return z_ND.detach().to(device="cpu", dtype=torch.float64)
