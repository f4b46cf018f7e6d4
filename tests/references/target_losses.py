"""Losses on targets written slowly in float64, value by value; they share no code with the package."""

import math

import torch
from torch import Tensor


def cross_entropy_by_loops(logits: Tensor, shares: Tensor, smoothing: float, weights: list[float] | None) -> Tensor:
    """Each image: −Σ_k t_k log p_k with t smoothed, times Σ_k share_k w_k; over the number of images."""
    total = torch.zeros((), dtype=torch.float64)
    rows, classes = logits.shape
    for b in range(rows):
        norm = sum(torch.exp(logits[b, k]) for k in range(classes))
        loss = torch.zeros((), dtype=torch.float64)
        for k in range(classes):
            target = shares[b, k] * (1 - smoothing) + smoothing / classes
            loss = loss - target * torch.log(torch.exp(logits[b, k]) / norm)
        weight = 1.0 if weights is None else sum(float(shares[b, k]) * weights[k] for k in range(classes))
        total = total + weight * loss
    return total / rows


def binary_cross_entropy_by_loops(
    logits: Tensor, targets: Tensor, smoothing: float, weights: list[tuple[float, float]] | None
) -> Tensor:
    """Over all values that are there: −t log p − (1 − t) log(1 − p), times the weight of its class."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            truth = float(targets[b, k])
            if math.isnan(truth):
                continue
            share = 1 / (1 + torch.exp(-logits[b, k]))
            soft = truth * (1 - smoothing) + smoothing / 2
            loss = -soft * torch.log(share) - (1 - soft) * torch.log(1 - share)
            weight = 1.0 if weights is None else (1 - truth) * weights[k][0] + truth * weights[k][1]
            total, count = total + weight * loss, count + 1
    return total / max(1, count)


def huber_by_loops(predictions: Tensor, targets: Tensor, delta: float) -> Tensor:
    """Over all values that are there: half the square of small errors, a line for large ones."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(predictions.shape[0]):
        for k in range(predictions.shape[1]):
            if math.isnan(float(targets[b, k])):
                continue
            error = abs(predictions[b, k] - targets[b, k])
            total = total + (error * error / 2 if error.item() <= delta else delta * (error - delta / 2))
            count += 1
    return total / max(1, count)


def squared_error_by_loops(predictions: Tensor, targets: Tensor) -> Tensor:
    """Over all values that are there: the square of the error."""
    known = [(b, k) for b in range(len(targets)) for k in range(targets.shape[1]) if targets[b, k] == targets[b, k]]
    total = torch.zeros((), dtype=torch.float64)
    for b, k in known:
        total = total + (predictions[b, k] - targets[b, k]) ** 2
    return total / max(1, len(known))
