"""The most memory a process holds that does nothing but run one model: measured in such a process.

`python -m ssl_ft.export.memory KIND PATH BATCH THREADS` is that process: it prints two numbers, MiB in all and MiB
beyond what it held before the model was loaded.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    kind = "torch" if path.is_dir() else "file"
    words = [sys.executable, "-m", "ssl_ft.export.memory", kind, str(path.resolve()), str(batch), str(num_threads)]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    told = done.stdout.split()
    if done.returncode or len(told) != 2:
        return None
    return Memory(*(round(float(word), 1) for word in told))


def _main(kind: str, path: Path, *, batch: int, num_threads: int) -> None:
    if kind == "torch":
        import torch

        from ssl_ft.artifact import load_model
        from ssl_ft.export.timing import eager_runner

        torch.set_num_threads(num_threads)
        before = _mb("VmRSS")
        model, card, _ = load_model(path)
        runner, contract = eager_runner(model, card.contract), card.contract
    else:
        from ssl_ft.export.description import read_description
        from ssl_ft.export.extras import import_onnxruntime
        from ssl_ft.export.running import open_runner

        if path.suffix == ".onnx":
            import_onnxruntime()
        before = _mb("VmRSS")
        description = read_description(path.parent)
        runner, contract = open_runner(path, description, num_threads=num_threads), description.contract
    runner.outputs(np.zeros((batch, contract.channels, contract.size, contract.size), np.uint8), batch_size=batch)
    print(_mb("VmHWM"), max(0.0, _mb("VmHWM") - before))


def _mb(key: str) -> float:
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(1)
    return int(match[1]) / 2**10


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), batch=int(sys.argv[3]), num_threads=int(sys.argv[4]))
