"""The check that several ranks give the loss and the gradient of one process on the joined batch, in float64.

Gloo on CPU ranks, and NCCL where there are two GPUs; under `torchrun`, the ranks that were started.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ssl_ft import dist
from ssl_ft.doctor.finding import Finding
from ssl_ft.doctor.spawn import Task, ask_ranks, joined
from ssl_ft.doctor.subject import OBJECTIVES, Steps, take_steps

# Sums in another order move float64 by 1e-13 here; a gather without gradient moves it by whole factors.
_TOLERANCE = 1e-9
_IMAGES_A_RANK, _NUM_STEPS = 4, 3
_ADVICE = (
    "do not train on several ranks with this installation: another loss is minimised than on one. Use devices=1, and "
    "install torch and ssl_ft again"
)


@dataclass(frozen=True)
class _Gap:
    """How far ranks are from one process: relative for the loss, for the gradient against its largest entry."""

    objective: str
    loss: float
    gradient: float
    length: float
    cosine: float

    @property
    def is_small(self) -> bool:
        return self.loss <= _TOLERANCE and self.gradient <= _TOLERANCE

    def __str__(self) -> str:
        if self.is_small:
            return f"{self.objective} loss to {self.loss:.0e}, gradient to {self.gradient:.0e}"
        return (
            f"{self.objective} LOSS OFF BY {self.loss:.1e}, GRADIENT BY {self.gradient:.1e} ({self.length:.3f} of the "
            f"length of one process's, cosine {self.cosine:.4f})"
        )


def check_ranks(*, num_ranks: int) -> Finding:
    """Start ranks on this machine and compare them with this process: gloo, and NCCL where there are GPUs for it."""
    if num_ranks < 2:
        return Finding("ranks", "cannot check", "ranks=1: there is nothing to compare", "give ranks=2")
    gaps = {f"gloo, {num_ranks} CPU ranks": _spawned_gaps("cpu", num_ranks)}
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > 1:
        used = min(num_ranks, gpus)
        gaps[f"NCCL, {used} GPU ranks"] = _spawned_gaps("cuda", used)
    return _finding(gaps, "" if gpus > 1 else "; NCCL was not tried: it takes 2 GPUs")


def _spawned_gaps(device_type: str, num_ranks: int) -> list[_Gap]:
    batch_size = _IMAGES_A_RANK * num_ranks
    device = torch.device(device_type, 0) if device_type == "cuda" else torch.device("cpu")
    alone = steps_of_all(device, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(str(Path(folder) / "steps.safetensors"), device_type, batch_size)
        ask_ranks(answer, task, num_ranks=num_ranks)
        together = _read(Path(task.path))
    return _gaps(alone, together)


def answer(task: Task) -> int:
    """One rank's part; rank 0 leaves the numbers in the task's file."""
    with joined(task.device_type) as device:
        steps = steps_of_all(device, batch_size=task.batch_size)
        if dist.is_main():
            tensors = {f"{name}/losses": torch.tensor(each.losses, dtype=torch.float64) for name, each in steps.items()}
            save_file(tensors | {f"{name}/gradient": each.gradient for name, each in steps.items()}, task.path)
    return 0


def steps_of_all(device: torch.device, *, batch_size: int) -> dict[str, Steps]:
    """Each objective's first steps in float64, on whatever ranks there are."""
    return {
        name: take_steps(name, device, dtype=torch.float64, batch_size=batch_size, num_steps=_NUM_STEPS)
        for name in OBJECTIVES
    }


def launched_batch_size() -> int:
    """Images of the joined batch of the ranks that `torchrun` started."""
    return _IMAGES_A_RANK * int(os.environ["WORLD_SIZE"])


def check_launched_ranks(alone: dict[str, Steps], device: torch.device) -> Finding:
    """Compare the ranks of this process group, all of which call this, with what each computed before it joined."""
    together = steps_of_all(device, batch_size=launched_batch_size())
    backend = "NCCL" if device.type == "cuda" else "gloo"
    return _finding({f"{backend}, {dist.world_size()} ranks that were started": _gaps(alone, together)}, "")


def _read(path: Path) -> dict[str, Steps]:
    tensors = load_file(path)
    return {name: Steps(tensors[f"{name}/losses"].tolist(), tensors[f"{name}/gradient"]) for name in OBJECTIVES}


def _gaps(alone: dict[str, Steps], together: dict[str, Steps]) -> list[_Gap]:
    return [_gap(name, alone[name], together[name]) for name in OBJECTIVES]


def _gap(name: str, one: Steps, many: Steps) -> _Gap:
    assert one.gradient.shape == many.gradient.shape, "the same parameters have gradients"
    loss = max(abs(b - a) / max(1.0, abs(a)) for a, b in zip(one.losses, many.losses, strict=True))
    distance = float((many.gradient - one.gradient).abs().max() / one.gradient.abs().max())
    length = float(many.gradient.norm() / one.gradient.norm())
    return _Gap(name, loss, distance, length, float(torch.cosine_similarity(one.gradient, many.gradient, dim=0)))


def _finding(gaps: dict[str, list[_Gap]], more: str) -> Finding:
    measured = "; ".join(f"{where}: {', '.join(map(str, each))}" for where, each in gaps.items())
    if all(gap.is_small for each in gaps.values() for gap in each):
        return Finding("ranks", "pass", f"against one process in float64: {measured}{more}")
    return Finding("ranks", "fail", f"against one process in float64: {measured}{more}", _ADVICE)
