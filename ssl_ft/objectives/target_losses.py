"""Losses on labels and targets, and weights of classes: pure functions. Mixing of images is in `mixing.py`.

Every loss is a mean over the images of a batch, or over the known values in it, with weights that average one over the
training images and not over each batch: a part of a batch, or a rank, then adds up to the whole.

Shape suffixes: B images, K classes, labels or numbers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(
    logits_BK: Tensor, shares_BK: Tensor, *, label_smoothing: float = 0.0, class_weights_K: Tensor | None = None
) -> Tensor:
    """Mean over images of w·−Σ t log softmax(logits), t the shares smoothed and w the classes' weight by their shares.

    With one-hot shares and no weights this is torch's cross-entropy. With weights it differs from torch's on purpose:
    that divides by the weights of the batch, this by its images, so that batches of few rare images do not count more.

    Args:
        logits_BK: [B, K].
        shares_BK: [B, K], rows that sum to 1: one-hot, or mixed.
        label_smoothing: share of each label spread evenly over the classes, in [0, 1].
        class_weights_K: [K] as `class_weights` gives them.
    """
    smoothed = shares_BK * (1 - label_smoothing) + label_smoothing / shares_BK.shape[1]
    losses = -(smoothed * logits_BK.log_softmax(1)).sum(1)
    if class_weights_K is not None:
        # Not as a product of matrices, which autocast would round.
        losses = losses * (shares_BK * class_weights_K.to(shares_BK)).sum(1)
    return losses.mean()


def masked_binary_cross_entropy(
    logits_BK: Tensor, targets_BK: Tensor, *, label_smoothing: float = 0.0, class_weights_K2: Tensor | None = None
) -> Tensor:
    """Mean over known targets of w·−(t log σ(z) + (1 − t) log σ(−z)); 0 where none is known.

    Args:
        logits_BK: z, [B, K].
        targets_BK: t, [B, K] in [0, 1], NaN = missing.
        label_smoothing: ε; t becomes t (1 − ε) + ε / 2.
        class_weights_K2: [K, 2], the weight of a negative and of a positive of each label, mixed as t is.
    """
    is_known = ~targets_BK.isnan()
    targets = targets_BK.nan_to_num(0.0)
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits_BK, smoothed, reduction="none")
    if class_weights_K2 is not None:
        negative, positive = class_weights_K2.to(targets).unbind(1)
        losses = losses * (negative + (positive - negative) * targets)
    return _mean_known(losses, is_known)


def masked_huber(predictions_BK: Tensor, targets_BK: Tensor, *, delta: float) -> Tensor:
    """Mean over known targets of Huber's loss: e²/2 up to |e| = δ, then δ (|e| − δ/2) (Huber 1964); 0 where none is.

    Args:
        predictions_BK: [B, K].
        targets_BK: [B, K], NaN = missing.
        delta: δ > 0, in the targets' unit.
    """
    is_known = ~targets_BK.isnan()
    targets = torch.where(is_known, targets_BK, predictions_BK.detach())
    return _mean_known(F.huber_loss(predictions_BK, targets, reduction="none", delta=delta), is_known)


def masked_squared_error(predictions_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Mean over known targets of (prediction − target)²; 0 where none is known. Shapes as in `masked_huber`."""
    is_known = ~targets_BK.isnan()
    # A missing target becomes the prediction itself: NaN times 0 would still be NaN in the gradient.
    targets = torch.where(is_known, targets_BK, predictions_BK.detach())
    return _mean_known((predictions_BK - targets).square(), is_known)


def _mean_known(losses_BK: Tensor, is_known_BK: Tensor) -> Tensor:
    return torch.where(is_known_BK, losses_BK, torch.zeros_like(losses_BK)).sum() / is_known_BK.sum().clamp(min=1)


def class_weights(counts: Sequence[int], *, how: str, beta: float) -> Tensor:
    """Weights of classes by how many training images they have, float64 [C], of mean one over those images.

    `inverse` is 1/n. `effective` is (1 − β) / (1 − βⁿ), one over the effective number of images (Cui et al. 2019,
    eq. 4 and 5): 1 for all classes at β = 0, towards 1/n as β goes to 1. Cui et al. scale weights to sum to C; here
    their mean over images is one, so that the loss keeps its size. A class without images gets weight 0.

    Args:
        counts: images of each class, at least one in all.
        how: "none", "inverse" or "effective".
        beta: β in [0, 1).
    """
    assert how in ("none", "inverse", "effective"), how
    images = torch.tensor(list(counts), dtype=torch.float64)
    if how == "none":
        return torch.ones_like(images)
    # expm1 keeps digits where β is close to 1 and n small.
    log_beta = torch.log(torch.tensor(beta, dtype=torch.float64))
    number = images if how == "inverse" else -torch.expm1(images * log_beta) / (1 - beta)
    weights = torch.where(images > 0, 1 / number.clamp(min=1e-300), torch.zeros_like(images))
    return weights * images.sum() / (weights * images).sum()
