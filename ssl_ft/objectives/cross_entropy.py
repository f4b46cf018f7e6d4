"""Mean cross-entropy of logits against whole labels, in float32 at least: what objectives with classes share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_cross_entropy(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Mean over rows of −log softmax at the row's class.

    On W ranks with equally many rows the mean over ranks is the loss of the joined batch.

    Args:
        logits_NK: [N, K]; bf16 and float16 are raised to float32 before the softmax.
        targets_N: int64 [N], 0 to K − 1.

    Returns:
        Scalar, float32 or float64.
    """
    # Under autocast a head's matrix product gives bf16.
    return F.cross_entropy(logits_NK if logits_NK.dtype == torch.float64 else logits_NK.float(), targets_N)
