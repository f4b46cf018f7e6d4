"""Quantizing an ONNX file by ONNX Runtime's own tools: dynamic, static on images, weights alone. No training.

What is rounded where it is trained is in `quantize_pt2e.py`; which kind suits a model in `quantize_choice.py`.
"""

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError

Calibration = Literal["minmax", "percentile", "entropy"]
# What is rounded in a convnet, and in a transformer, whose residual stream and attention stay in float32: few of their
# numbers are so large that 8 bits for all of them would lose the rest.
_IN_CONVNETS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu", "Clip"]
_IN_TRANSFORMERS = ["Conv", "Gemm", "MatMul"]


def quantize_dynamic(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Weights of linear layers to int8 per output channel; activations to uint8 by the range of each batch at hand.

    Convolutions stay as they are: ONNX Runtime's dynamic ones are slower than float32.

    Args:
        source: the float32 model.
        target: the file to write, beside which nothing is left.
        reduce_range: weights in 7 bits, for CPUs that saturate sums of 8 by 8 bits.
    """
    with _contained(target.parent):
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        quantizer = ONNXQuantizer(
            _inferred(source, has_gemm=False), True, reduce_range, QuantizationMode.IntegerOps, False, QuantType.QInt8,
            QuantType.QUInt8, None, [], [], ["MatMul"], {"MatMulConstBOnly": True},
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)


def quantize_static(
    source: Path,
    target: Path,
    batches: Iterable[NDArray[np.float32]],
    *,
    calibration: Calibration,
    is_convnet: bool,
    reduce_range: bool,
) -> None:
    """Weights to int8 per output channel, activations to uint8 by ranges that calibration images had.

    Args:
        source: the float32 model.
        target: the file to write, beside which nothing is left.
        batches: float32 [B, C, S, S] each, as the model takes them; taken one after the other.
        calibration: range of an activation: all that was seen, all but 0.0005 % at each end, or the range whose
            rounding changes the distribution least (Migacz 2017).
        is_convnet: also round sums and pooled maps, as integer kernels for convolutions want it.
        reduce_range: weights in 7 bits, for CPUs that saturate sums of 8 by 8 bits.

    Raises:
        UserError: no image to calibrate on, or images of another size than the model takes.
    """
    kinds = _IN_CONVNETS if is_convnet else _IN_TRANSFORMERS
    with _contained(target.parent):
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        ranges = _ranges(source, batches, kinds=kinds, calibration=calibration)
        # The outputs of the head, which no kernel of 8 bits reads, stay in float32; so do products of activations.
        options = {"OpTypesToExcludeOutputQuantization": ["Gemm"], "MatMulConstBOnly": True}
        quantizer = QDQQuantizer(
            _inferred(source, has_gemm=True), True, reduce_range, QuantType.QInt8, QuantType.QUInt8, ranges, [],
            [] if is_convnet else _products(source), kinds, options,
        )  # fmt: skip
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(target), False)


def quantize_weights(source: Path, target: Path) -> None:
    """Weights of linear layers to 8 bits in blocks of inputs, each with a scale; activations stay in float32.

    Args:
        source: the float32 model.
        target: the file to write, beside which nothing is left.
    """
    with _contained(target.parent):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = _inferred(source, has_gemm=False)
        quantizer = MatMulNBitsQuantizer(
            model, bits=8, block_size=_block(model), is_symmetric=True, op_types_to_quantize=("MatMul",)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)


def _block(model: Any) -> int:
    """Inputs that share a scale: as many as divide those of every layer, for a block is filled up with zeros."""
    held = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    sizes = [held[n.input[1]][0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in held]
    return next(block for block in (128, 64, 32, 16) if block == 16 or not any(size % block for size in sizes))


def _products(source: Path) -> list[str]:
    """Names of the products of two activations."""
    import onnx

    graph = onnx.load(str(source)).graph
    held = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not held & set(node.input)]


def _inferred(source: Path, *, has_gemm: bool) -> Any:
    """The model with the shapes of what it computes, each Gemm as MatMul and Add where `has_gemm` says so."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    model = onnx.load(str(source))
    if not has_gemm:
        # The exporter's own shapes name weights as they lie in a Gemm; turned over, they would contradict them.
        del model.graph.value_info[:]
        ONNXModel(model).replace_gemm_with_matmul()
    model = onnx.shape_inference.infer_shapes(model)
    add_infer_metadata(model)
    return model


class _Reader:
    """One batch, as ONNX Runtime's calibration asks for it."""

    def __init__(self, batch: NDArray[np.float32], name: str) -> None:
        self._left: list[dict[str, NDArray[np.float32]]] = [{name: batch}]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return self._left.pop() if self._left else None


def _ranges(source: Path, batches: Iterable[NDArray[np.float32]], *, kinds: list[str], calibration: Calibration) -> Any:
    """Ranges of all activations that are rounded. One batch at a time: else it would keep what all of them give."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    augmented = Path(tempfile.gettempdir(), "augmented.onnx")
    calibrator = create_calibrator(
        source, kinds, str(augmented), methods[calibration], extra_options={"symmetric": False}
    )
    images = calibrator.infer_session.get_inputs()[0]
    num_batches = 0
    for batch in batches:
        if list(batch.shape[1:]) != images.shape[1:]:
            raise UserError(
                f"calibration images have shape {tuple(batch.shape[1:])}, and the model takes "
                f"{tuple(images.shape[1:])}: give images of the model's channels and size"
            )
        calibrator.collect_data(_Reader(batch, images.name))
        num_batches += 1
    if not num_batches:
        raise UserError("there is no image to calibrate on: static quantization needs some, 100 or more")
    return calibrator.compute_data()


@contextmanager
def _contained(folder: Path) -> Iterator[None]:
    """Have ONNX Runtime's tools put temporary files into `folder`, print nothing, and leave the root logger alone.

    They log by `logging.info`, and one configures logging on import: either gives a root logger without handlers one,
    for good. They print to stdout, which is kept for the run folder's path.
    """
    before, silence = tempfile.tempdir, logging.NullHandler()
    with tempfile.TemporaryDirectory(prefix=".quantize.", dir=folder) as own, redirect_stdout(io.StringIO()):
        tempfile.tempdir = own
        logging.root.addHandler(silence)
        try:
            yield
        finally:
            tempfile.tempdir = before
            logging.root.removeHandler(silence)
