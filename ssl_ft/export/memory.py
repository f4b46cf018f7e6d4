"""The most memory a process holds that does nothing but run one model: measured in such a process.

`python -m ssl_ft.export.memory KIND PATH BATCH THREADS` is that process: it prints two numbers, MiB in all and MiB
beyond what it held before the model was loaded.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Peak resident memory in MiB: of the whole process, and beyond what its interpreter and packages held."""

    total_mb: float
    own_mb: float


def peak_in_own_process(path: Path, *, batch: int, num_threads: int) -> Memory | None:
    """Peak memory of loading the model and answering one batch of black images.

    Args:
        path: a model folder of ours, run by torch, or an exported file with its `model.json` beside it.
        batch: images of the call.
        num_threads: CPU threads.

    Returns:
        None where the system does not tell a process's peak in `/proc`, or the process failed.
    """
    kind = "torch" if path.is_dir() else path.suffix.removeprefix(".")
    words = [sys.executable, "-m", "ssl_ft.export.memory", kind, str(path.resolve()), str(batch), str(num_threads)]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    told = done.stdout.split()
    if done.returncode or len(told) != 2:
        return None
    return Memory(*(round(float(word), 1) for word in told))


def _main(kind: str, path: Path, *, batch: int, num_threads: int) -> None:
    """Imports first, then the count, then the model: nothing is imported that the file's own runtime does not need."""
    load = {"torch": _load_folder, "onnx": _load_onnx, "pt2": _load_program}[kind](num_threads)
    before = _mb("VmRSS")
    load(path, batch)()
    print(_mb("VmHWM"), max(0.0, _mb("VmHWM") - before))


_Loader = Callable[[Path, int], Callable[[], object]]


def _load_folder(num_threads: int) -> _Loader:
    import torch

    from ssl_ft.artifact import load_model

    torch.set_num_threads(num_threads)

    def load(path: Path, batch: int) -> Callable[[], object]:
        model, card, _ = load_model(path)
        images = torch.zeros(batch, card.contract.channels, card.contract.size, card.contract.size)

        def call() -> object:
            with torch.inference_mode():
                return model(images)

        return call

    return load


def _load_onnx(num_threads: int) -> _Loader:
    import onnxruntime

    def load(path: Path, batch: int) -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        images = _black(path.parent, batch)
        return lambda: session.run(None, {session.get_inputs()[0].name: images})

    return load


def _load_program(num_threads: int) -> _Loader:
    import torch

    from ssl_ft.export.program_file import load_program

    torch.set_num_threads(num_threads)

    def load(path: Path, batch: int) -> Callable[[], object]:
        module, images = load_program(path), torch.from_numpy(_black(path.parent, batch))

        def call() -> object:
            with torch.inference_mode():
                return module(images)

        return call

    return load


def _black(folder: Path, batch: int) -> NDArray[np.generic]:
    """Zeros of the shape and type that `model.json` of the folder tells."""
    told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    size, channels = told["contract"]["size"], told["contract"]["channels"]
    sides = (size, size, channels) if told["input"]["layout"] == "nhwc" else (channels, size, size)
    return np.zeros((batch, *sides), np.dtype(told["input"]["dtype"]))


def _mb(key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(1)
    return int(match[1]) / 2**10


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), batch=int(sys.argv[3]), num_threads=int(sys.argv[4]))
