"""What a student loses by not saying what its teacher says, in float64 with loops; shares no code with the package."""

import torch
from torch import Tensor


def _shares(logits: Tensor, temperature: float) -> list[Tensor]:
    exps = [torch.exp(x / temperature) for x in logits]
    return [e / sum(exps) for e in exps]


def soft_targets_by_loops(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al. 2015, section 2, less the teacher's entropy: τ² Σ p log(p/q), p and q shares at τ, mean of rows."""
    total = torch.zeros((), dtype=torch.float64)
    for own, wanted in zip(student, teacher, strict=True):
        for p, q in zip(_shares(wanted, temperature), _shares(own, temperature), strict=True):
            total = total + p * (torch.log(p) - torch.log(q))
    return temperature**2 * total / len(student)


def hard_targets_by_loops(student: Tensor, teacher: Tensor) -> Tensor:
    """−log of the student's share of the class the teacher finds likeliest, mean of rows."""
    total = torch.zeros((), dtype=torch.float64)
    for own, wanted in zip(student, teacher, strict=True):
        best = max(range(len(wanted)), key=lambda k: float(wanted[k]))
        total = total - torch.log(_shares(own, 1.0)[best])
    return total / len(student)


def cosine_by_loops(features: Tensor, teacher: Tensor) -> Tensor:
    """1 − f·t / (‖f‖ ‖t‖), mean of rows."""
    total = torch.zeros((), dtype=torch.float64)
    for f, t in zip(features, teacher, strict=True):
        product = sum(a * b for a, b in zip(f, t, strict=True))
        total = total + 1 - product / (sum(a * a for a in f).sqrt() * sum(b * b for b in t).sqrt())
    return total / len(features)


def squared_by_loops(features: Tensor, teacher: Tensor) -> Tensor:
    """Σ ‖f − t‖² / Σ ‖t‖² over all rows."""
    pairs = [(a, b) for f, t in zip(features, teacher, strict=True) for a, b in zip(f, t, strict=True)]
    return sum((a - b) ** 2 for a, b in pairs) / sum(b * b for _, b in pairs)


def labels_by_loops(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with whole labels, mean of rows."""
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, labels.tolist(), strict=True):
        total = total - torch.log(_shares(row, 1.0)[label])
    return total / len(logits)
