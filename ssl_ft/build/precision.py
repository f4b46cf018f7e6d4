"""The precision a training computes in: the one asked for, or of pretraining the faster, kept with the run."""

from pathlib import Path

import torch

from ssl_ft import dist
from ssl_ft.config import PretrainSettings
from ssl_ft.errors import UserError
from ssl_ft.processor import faster_precision, has_bf16
from ssl_ft.runlog import RunFolder, write_text

_FASTER = ("float32", "bf16")


def settle_precision(settings: PretrainSettings, run: RunFolder, *, device: torch.device) -> PretrainSettings:
    """The settings with a precision in place of `auto`: that of the first rank where the run began, on all ranks.

    It stays with the run, so that a resumption elsewhere goes on with the same numbers.

    Raises:
        UserError: what was kept of it cannot be read.
    """
    for note in emulation_notes(settings.precision, device):
        run.note(note)
    if settings.precision != "auto":
        return settings
    path = run.path / "precision.txt"
    kept = dist.broadcast_object(_read(path) if dist.is_main() else None)
    found = kept or dist.broadcast_object(faster_precision(device))
    if kept is None:
        run.note(f"precision={found}: {_why(device)}")
        if dist.is_main():
            write_text(path, f"{found}\n")
    else:
        for note in emulation_notes(found, device):
            run.note(f"the run goes on in bf16, as it began; {note}")
    return settings.model_copy(update={"precision": found})


def emulation_notes(precision: str, device: torch.device) -> list[str]:
    """What to know where bf16 is asked for and hardware does not have it."""
    if precision != "bf16" or has_bf16(device):
        return []
    return [
        f"precision=bf16: this {_name(device)} emulates bf16, which took nine times as long as float32 on a processor "
        "where both were measured; precision=float32 is faster here"
    ]


def _why(device: torch.device) -> str:
    return f"this {_name(device)} {'has bf16 in hardware' if has_bf16(device) else 'would have to emulate bf16'}"


def _name(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "processor"


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text not in _FASTER:
        raise UserError(f"{path} must say {' or '.join(_FASTER)}, it says {text[:40]!r}; start anew with another out=")
    return text
