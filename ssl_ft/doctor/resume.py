"""The check that a run which was stopped and gone on with ends with the very same weights, bit for bit, on the CPU."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssl_ft.checkpoint import load_checkpoint, save_checkpoint
from ssl_ft.data.named import open_digits
from ssl_ft.data.store import DecodeOptions, ImageStore
from ssl_ft.doctor.finding import Finding
from ssl_ft.doctor.subject import build_objective, build_tiny_optimizer, train

_STEPS, _BATCH, _IMAGES = 4, 16, 96
_CPU = torch.device("cpu")


class _Work:
    """A tiny run on scikit-learn's digits: SimCLR, AdamW, a running average."""

    def __init__(self) -> None:
        self.objective: nn.Module = build_objective("simclr", _CPU, dtype=torch.float32, channels=1)
        self.optimizer: Optimizer = build_tiny_optimizer("adamw", self.objective)
        encoder: nn.Module = self.objective.encoder  # type: ignore[assignment]
        self.average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        source = open_digits().subset(np.arange(_IMAGES))
        self.store = ImageStore(source, DecodeOptions(1, 8, workers=1), seed=0, is_decoded=True)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"objective": self.objective, "average": self.average}

    def train(self, steps: range) -> None:
        train(
            self.objective, self.optimizer, self.store, batch_size=_BATCH, steps=steps, num_steps=2 * _STEPS,
            device=_CPU, average=self.average,
        )  # fmt: skip

    def digest(self) -> str:
        """SHA-256 over all weights, statistics and averages."""
        digest = hashlib.sha256()
        for module in self.modules().values():
            for name, value in sorted(module.state_dict().items()):
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def check_resume() -> Finding:
    """k steps, a checkpoint, everything built anew, k more steps: the weights of 2k steps in one go."""
    whole = _whole()
    first, second = _Work(), _Work()
    first.train(range(_STEPS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.safetensors"
        save_checkpoint(path, modules=dict(first.modules()), optimizer=first.optimizer, values={"step": _STEPS})
        values = load_checkpoint(path, modules=dict(second.modules()), optimizer=second.optimizer)
    second.train(range(int(values["step"]), 2 * _STEPS))
    what = f"{_STEPS} + {_STEPS} steps through a checkpoint against {2 * _STEPS} on the digits"
    if second.digest() == whole:
        return Finding("resume", "pass", f"{what}: the same weights, bit for bit ({whole[:8]})")
    if _whole() != whole:
        measured = f"{what}: the weights differ, and so do those of the same {2 * _STEPS} steps done twice"
        return Finding("resume", "fail", measured, "sums vary from run to run here: try threads=1, or another torch")
    measured = f"{what}: the weights differ, though the same {2 * _STEPS} steps done twice agree"
    advice = "do not stop and go on with long runs on this installation; install ssl_ft and safetensors again"
    return Finding("resume", "fail", measured, advice)


def _whole() -> str:
    work = _Work()
    work.train(range(2 * _STEPS))
    return work.digest()
