"""Running an exported file on images, without the model it was made from: ONNX by ONNX Runtime, `.pt2` by torch.

A runner takes uint8 images of the contract and prepares them as the file wants them. Reading images is elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.errors import UserError
from ssl_ft.export.description import Description
from ssl_ft.export.extras import import_onnxruntime

Floats32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Runner:
    """A model ready to run.

    Attributes:
        prepare: uint8 [B, C, size, size] -> what `call` takes.
        call: -> float32 [B, K].
    """

    prepare: Callable[[Pixels], NDArray[np.generic]]
    call: Callable[[NDArray[np.generic]], Floats32]

    def outputs(self, pixels: Pixels, *, batch_size: int = 64) -> Floats32:
        """Outputs float32 [N, K] of uint8 images [N, C, size, size], N >= 1, in blocks."""
        starts = range(0, len(pixels), batch_size)
        return np.concatenate([self.call(self.prepare(pixels[start : start + batch_size])) for start in starts])


def open_runner(file: Path, description: Description, *, num_threads: int) -> Runner:
    """The exported file, loaded.

    Args:
        file: `.onnx`, or a `.pt2` that holds no pickle, as ours.
        description: what lies beside it.
        num_threads: CPU threads of ONNX Runtime; torch uses those of this process.

    Raises:
        UserError: no such file, of another kind, damaged, or its runtime is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file} is not there; export the model again")
    prepare = preparer(description)
    if file.suffix == ".onnx":
        return Runner(prepare, onnx_call(file, num_threads=num_threads))
    if file.suffix == ".pt2":
        return Runner(prepare, _program_call(file))
    raise UserError(f"{file}: only .onnx and .pt2 files can be run here, not {file.suffix or 'one without ending'!r}")


def preparer(description: Description) -> Callable[[Pixels], NDArray[np.generic]]:
    """What turns uint8 [B, C, size, size] into the input of the described file."""
    if description.preprocess == "outside":
        return lambda pixels: normalised(pixels, description.contract)
    if description.layout == "nhwc":
        return lambda pixels: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return lambda pixels: pixels


def normalised(pixels: Pixels, contract: InputContract) -> Floats32:
    """float32 input from uint8 images, the numbers that `InputContract.normalise` gives, without torch."""
    mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (contract.mean, contract.std))
    scaled: Floats32 = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return scaled


def onnx_call(file: Path, *, num_threads: int) -> Callable[[NDArray[np.generic]], Floats32]:
    """An ONNX file, loaded: its input -> outputs float32 [B, K].

    Raises:
        UserError: ONNX Runtime is not installed, or cannot load the file.
    """
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    # Threads that go on spinning after a call would take the cores from whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has no class of its own that covers all it raises
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{file} cannot be loaded by ONNX Runtime ({reason}); export the model again") from error
    name = session.get_inputs()[0].name

    def call(images: NDArray[np.generic]) -> Floats32:
        return np.asarray(session.run(None, {name: images})[0], np.float32)

    return call


def _program_call(file: Path) -> Callable[[NDArray[np.generic]], Floats32]:
    import torch

    from ssl_ft.export.program_file import load_program

    module = load_program(file)

    def call(images: NDArray[np.generic]) -> Floats32:
        with torch.inference_mode():
            outputs: Floats32 = module(torch.from_numpy(np.ascontiguousarray(images))).float().numpy()
        return outputs

    return call
