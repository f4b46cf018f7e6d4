"""What an exported file and its parent cost to run: speed in turns, memory each in a process of its own, bytes on disk.

The parent is measured twice, as torch runs it uncompiled and as a plain ONNX file, so that what the runtime gains and
what compression gains can be told apart.
"""

import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.export.description import Description, describe, size_bytes, write_description
from ssl_ft.export.memory import Memory, peak_in_own_process
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.export.running import Pixels, Runner, open_runner
from ssl_ft.export.timing import Speed, eager_runner, time_in_turns

BATCHES = (1, 32)
"""Images a call, for latency and for throughput."""
PARENT_TORCH, PARENT_ONNX, CHILD = "parent, PyTorch", "parent, ONNX", "exported"


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported file, what is said of it, and the same loaded."""

    file: Path
    description: Description
    runner: Runner


@dataclass(frozen=True)
class Costs:
    """Of one model.

    Attributes:
        name: which.
        speeds: for each of `BATCHES`.
        memory: None where this machine does not tell.
        size_bytes: of the file, or of the parent's weights.
    """

    name: str
    speeds: tuple[Speed, ...]
    memory: Memory | None
    size_bytes: int


def measure_costs(
    child: Exported,
    parent: nn.Module,
    card: ModelCard,
    *,
    pixels: tuple[Pixels, Pixels],
    num_threads: int,
    most_seconds: float,
    place: Path,
) -> list[Costs]:
    """Measure the parent in PyTorch, the parent in ONNX, and the file, in this order.

    Args:
        child: the file.
        parent: in evaluation mode, on the CPU.
        card: of the parent.
        pixels: images to time the parent and the file on, uint8 [N, C, size, size].
        num_threads: CPU threads of every runtime.
        most_seconds: of timing, for each size of batch.
        place: a folder where the parent may lie meanwhile.
    """
    contract = card.contract
    with tempfile.TemporaryDirectory(prefix=".audit-", dir=place) as held:
        folder, onnx = Path(held) / "parent", Path(held) / "parent.onnx"
        save_model(folder, parent, card)
        write_onnx(parent, onnx, channels=contract.channels, size=contract.size)
        plain = describe(card, parent="")
        write_description(onnx.parent, plain)
        runners = [eager_runner(parent, contract), open_runner(onnx, plain, num_threads=num_threads), child.runner]
        by_batch = []
        for batch in BATCHES:
            own, childs = (_block(images, batch) for images in pixels)
            by_batch.append(
                time_in_turns(runners, [own, own, childs], num_threads=num_threads, most_seconds=most_seconds)
            )
        paths = (folder, onnx, child.file)
        memory = [peak_in_own_process(path, batch=BATCHES[-1], num_threads=num_threads) for path in paths]
        sizes = [size_bytes(folder / "model.safetensors"), size_bytes(onnx), size_bytes(child.file)]
    names = (PARENT_TORCH, PARENT_ONNX, CHILD)
    return [
        Costs(name, tuple(speeds[row] for speeds in by_batch), memory[row], sizes[row])
        for row, name in enumerate(names)
    ]


def machine_words() -> str:
    """Processor, cores and versions, for whoever reads the figures elsewhere."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores, torch {version('torch')}, onnxruntime {version('onnxruntime')}"


def _block(pixels: Pixels, batch: int) -> Pixels:
    """The first `batch` images, from the start again where there are fewer."""
    return pixels[np.arange(batch) % len(pixels)]
