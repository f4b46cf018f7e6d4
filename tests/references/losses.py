"""Losses written slowly from the papers, in float64 and with loops; they share no code with the package."""

import math

import torch
from torch import Tensor


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt())


def nt_xent_by_loops(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's algorithm 1 line by line: l(i, j) summed over both directions of every pair, over 2N."""
    count = first.shape[0]
    rows = [x for pair in zip(first, second, strict=True) for x in pair]  # 2k and 2k+1 are a pair
    total = torch.zeros((), dtype=torch.float64)
    for k in range(count):
        for i, j in ((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)):
            positive = torch.exp(_cosine(rows[i], rows[j]) / temperature)
            others = sum(torch.exp(_cosine(rows[i], rows[m]) / temperature) for m in range(2 * count) if m != i)
            total = total - torch.log(positive / others)
    return total / (2 * count)


def dcl_by_loops(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """−J, J = F(t₁x)ᵀF(t₂x) − log Σ exp(F(t₁x)ᵀF(x⁻)), F of unit length over √τ, mean over all views of images."""
    count = first.shape[0]
    views = torch.stack([first, second])  # [2, N, D]
    unit = views / views.square().sum(2, keepdim=True).sqrt() / math.sqrt(temperature)
    total = torch.zeros((), dtype=torch.float64)
    for view in range(2):
        for image in range(count):
            anchor = unit[view, image]
            negatives = [unit[v, n] for n in range(count) if n != image for v in range(2)]
            score = anchor @ unit[1 - view, image] - torch.log(sum(torch.exp(anchor @ n) for n in negatives))
            total = total - score
    return total / (2 * count)


def masked_error_by_loops(prediction: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
    """Mean over hidden patches of the mean squared error of their values."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image in range(mask.shape[0]):
        for patch in range(mask.shape[1]):
            if mask[image, patch]:
                difference = prediction[image, patch] - patches[image, patch]
                total = total + sum(d * d for d in difference) / len(difference)
                count += 1
    return total / count


def l2sp_by_loops(weights: list[Tensor], source: list[Tensor], strength: float) -> Tensor:
    """α/2 ‖w − w⁰‖², weight by weight."""
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(weights, source, strict=True):
        for w, s in zip(one.flatten(), other.flatten(), strict=True):
            total = total + strength * (w - s) * (w - s) / 2
    return total


def feature_distance_by_loops(features: Tensor, source: Tensor) -> Tensor:
    """Squared distances of the images' features from the source's, summed, over its squared lengths, summed."""
    above, below = torch.zeros((), dtype=torch.float64), 0.0
    for f, s in zip(features, source, strict=True):
        above = above + sum((a - b) ** 2 for a, b in zip(f, s.tolist(), strict=True))
        below += sum(b * b for b in s.tolist())
    return above / below
