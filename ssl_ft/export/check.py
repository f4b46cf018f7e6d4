"""Whether an exported file answers as its model does: it is loaded in a fresh process and run on real images."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError
from ssl_ft.export.running import Floats32

_RELOAD = Path(__file__).with_name("reload.py")


@dataclass(frozen=True)
class Checked:
    """How a file's answers differ from its model's.

    Attributes:
        deviation: largest absolute difference of any output, over the largest absolute output of the model.
        agreement: share of images whose largest output is the same one; None where outputs are no classes.
        num_images: compared.
    """

    deviation: float
    agreement: float | None
    num_images: int


def check_file(kind: str, path: Path, *, inputs: NDArray[np.generic], expected: Floats32, are_classes: bool) -> Checked:
    """Load the file in a process of its own, without this package, and compare its answers.

    Args:
        kind: "onnx", "torch", "timm", "inductor" or "executorch".
        path: file or folder.
        inputs: what it takes, [N, ...].
        expected: the model's answers, float32 [N, K].
        are_classes: whether the largest output is the answer.

    Raises:
        UserError: it cannot be loaded or run there.
    """
    with tempfile.TemporaryDirectory() as place:
        given, answers = Path(place) / "inputs.npy", Path(place) / "outputs.npy"
        np.save(given, inputs)
        words = [sys.executable, "-I", str(_RELOAD), kind, str(path.resolve()), str(given), str(answers)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not answers.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{path}: the exported file cannot be run in a fresh process ({last}); it is of no use")
        found = np.load(answers, allow_pickle=False)
    return compare(found, expected, are_classes=are_classes)


def compare(found: Floats32, expected: Floats32, *, are_classes: bool) -> Checked:
    """How answers [N, K] differ from those expected.

    Raises:
        UserError: they have another shape.
    """
    if found.shape != expected.shape:
        raise UserError(f"the exported file answers with shape {found.shape}, its model with {expected.shape}")
    if not np.isfinite(found).all():
        return Checked(float("inf"), 0.0 if are_classes else None, len(found))
    largest = float(np.abs(expected).max())
    deviation = float(np.abs(found.astype(np.float64) - expected).max()) / (largest or 1.0)
    agreement = float((found.argmax(1) == expected.argmax(1)).mean()) if are_classes else None
    return Checked(deviation, agreement, len(found))
