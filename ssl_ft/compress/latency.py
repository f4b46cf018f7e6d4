"""The time an image takes a model in ONNX Runtime, as a share of the time it takes another, measured in turns."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from ssl_ft.errors import UserError
from ssl_ft.export.onnx_file import write_onnx

_NUM_WARM_UPS = 3
_NUM_ROUNDS = 15


def open_session(model: nn.Module, path: Path, *, channels: int, size: int, num_threads: int) -> Any:
    """The model as it would be shipped, ready to run.

    Args:
        model: in evaluation mode, on the CPU.
        path: of the ONNX file, which is written.
        channels: of its input.
        size: side of its input.
        num_threads: of ONNX Runtime.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("prune.latency= needs the package onnxruntime; pip install '.[compress]'") from error
    write_onnx(model, path, channels=channels, size=size)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latency_share(session: Any, whole: Any) -> float:
    """Median time of one image in a session, as a share of that in another; the two take turns, so that a machine that
    slows down slows both.
    """
    shape = [1, *session.get_inputs()[0].shape[1:]]
    feed = {"images": np.zeros(shape, np.float32)}
    times: tuple[list[float], list[float]] = [], []
    for number in range(_NUM_WARM_UPS + _NUM_ROUNDS):
        for own, kept in zip((session, whole), times, strict=True):
            began = time.perf_counter()
            own.run(None, feed)
            if number >= _NUM_WARM_UPS:
                kept.append(time.perf_counter() - began)
    return median(times[0]) / median(times[1])
