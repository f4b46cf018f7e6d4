"""The check that bf16 gives the numbers of float32 up to its rounding, on the device that will train."""

import torch

from ssl_ft.doctor.finding import Finding
from ssl_ft.doctor.subject import OBJECTIVES, Steps, take_steps

# bf16 keeps 8 bits: each product is off by up to 0.4 %. Batch norms over few images magnify that; 0.001 and 0.983 were
# measured on a CPU with AVX512-BF16, while a wrong kernel gives a gradient of no particular direction.
_LOSS_GAP, _LEAST_COSINE = 0.02, 0.95


def check_precision(device: torch.device) -> Finding:
    """One step of each objective in mixed bf16 against float32: its loss, and the direction of its gradient."""
    texts, is_wrong = [], False
    for name in OBJECTIVES:
        wide, narrow = _one_step(name, device, None), _one_step(name, device, torch.bfloat16)
        gap = abs(narrow.losses[0] - wide.losses[0]) / abs(wide.losses[0])
        cosine = float(torch.cosine_similarity(wide.gradient, narrow.gradient, dim=0))
        # Written so that a loss that is no number is wrong too.
        is_wrong |= not (gap <= _LOSS_GAP and cosine >= _LEAST_COSINE)
        texts.append(f"{name}: loss off by {gap:.1e}, cosine of the gradients {cosine:.4f}")
    measured = f"one step on {device.type}, bf16 against float32: {'; '.join(texts)}"
    if is_wrong:
        return Finding("precision", "fail", measured, "train with precision=float32 on this device")
    return Finding("precision", "pass", measured)


def _one_step(name: str, device: torch.device, autocast: torch.dtype | None) -> Steps:
    return take_steps(name, device, dtype=torch.float32, batch_size=16, num_steps=1, autocast=autocast)
