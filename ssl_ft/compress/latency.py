"""The time an image takes a model in ONNX Runtime, as a share of the time it takes another, measured in turns."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from torch import nn

from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.export.running import onnx_call
from ssl_ft.export.timing import seconds_in_turns


def open_call(model: nn.Module, path: Path, *, channels: int, size: int, num_threads: int) -> Callable[[], object]:
    """The model as it would be shipped, called on one image.

    Args:
        model: in evaluation mode, on the CPU.
        path: of the ONNX file, which is written.
        channels: of its input.
        size: side of its input.
        num_threads: of ONNX Runtime.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    write_onnx(model, path, channels=channels, size=size)
    return partial(onnx_call(path, num_threads=num_threads), np.zeros((1, channels, size, size), np.float32))


def latency_share(call: Callable[[], object], whole: Callable[[], object]) -> float:
    """Median time of a call, as a share of that of another; the two take turns, so that a machine that slows down
    slows both.
    """
    own, other = seconds_in_turns([call, whole], most_seconds=0.0)
    return median(own) / median(other)
