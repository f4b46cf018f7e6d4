"""What a student loses by not saying what its teacher says: pure functions. The modules that call them: `distilled.py`.

Every loss is a mean over the images of a batch. No gradient reaches a teacher.

Shape suffixes: B images, K classes, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """τ² · KL(softmax(t/τ) ‖ softmax(s/τ)), the mean over images; a scalar >= 0 (Hinton, Vinyals and Dean 2015).

    The factor τ² keeps the gradient's size: towards large τ it is that of Σ ((s − s̄) − (t − t̄))² / 2K, the matching of
    logits. Hinton et al. take the cross-entropy, which differs by the teacher's entropy and has the same gradient; the
    divergence is 0 where both agree.

    Args:
        student_BK: logits s, [B, K].
        teacher_BK: logits t, [B, K].
        temperature: τ > 0.
    """
    student = (student_BK / temperature).log_softmax(1)
    teacher = (teacher_BK.detach() / temperature).log_softmax(1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(1).mean()


def hard_target_loss(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Cross-entropy with the class the teacher finds likeliest, the mean over images; of equal ones the first.

    Args:
        student_BK: logits, [B, K].
        teacher_BK: logits, [B, K].
    """
    return F.cross_entropy(student_BK, teacher_BK.detach().argmax(1))


def cosine_loss(features_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """1 − cosine of the angle between both, the mean over images; a scalar in [0, 2], 1 where either is zero.

    Args:
        features_BD: what the student's features were mapped to, [B, D].
        teacher_BD: of the teacher, about their mean, [B, D].
    """
    return 1 - F.cosine_similarity(features_BD, teacher_BD.detach(), dim=1, eps=_tiny(features_BD)).mean()


def squared_loss(features_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Σ ‖f − t‖² / Σ ‖t‖², sums over the images; a scalar >= 0, and 1 where f is zero.

    The teacher's features come about their mean: then this is the share of their variance that is not explained.

    Args:
        features_BD: f, what the student's features were mapped to, [B, D].
        teacher_BD: t, [B, D].
    """
    teacher = teacher_BD.detach()
    return (features_BD - teacher).square().sum() / teacher.square().sum().clamp(min=_tiny(teacher))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
