"""Domain-adversarial training: reversed gradients, their schedule, and the critic that tells source from target.

Ganin et al. 2016, "Domain-adversarial training of neural networks". Target batches come in `aligned.py`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# γ of the schedule, as published.
_STEEPNESS = 10.0


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reversed_gradient(features: Tensor, *, strength: float) -> Tensor:
    """The features themselves; their gradient arrives multiplied by −strength (equations 16 and 17)."""
    reversed_: Tensor = _Reversal.apply(features, strength)
    return reversed_


def reversal_strength(progress: float) -> float:
    """λ = 2 / (1 + exp(−10 p)) − 1 for progress p in [0, 1]: 0 while the critic still guesses, then towards 1."""
    return 2 / (1 + math.exp(-_STEEPNESS * progress)) - 1


class Critic(nn.Module):
    """Two layers from features [B, D] to logits [B] of being the target's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits float [B]."""
        logits: Tensor = self.layers(features_BD).squeeze(1)
        return logits


def domain_loss(critic: nn.Module, source_ND: Tensor, target_MD: Tensor, *, strength: float) -> Tensor:
    """Mean binary cross-entropy of the critic, each side counting half; its gradient reaches the features reversed.

    Args:
        critic: features [B, D] -> logits [B].
        source_ND: float [N, D].
        target_MD: float [M, D].
        strength: of the reversal.
    """
    terms = []
    for features, truth in ((source_ND, 0.0), (target_MD, 1.0)):
        logits = critic(reversed_gradient(features, strength=strength)).float()
        terms.append(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth)))
    return (terms[0] + terms[1]) / 2
