"""Where a captured graph is rounded to 8 bits so that ONNX Runtime computes in 8 bits: what PT2E calls a quantizer.

ONNX Runtime has integer kernels for an operation whose inputs *and* output are rounded; torchao's own layout for x86
leaves outputs alone. Capturing, training and converting are in `quantize_pt2e.py`.
"""

from typing import Any

import torch
from torch import fx

# torchao's FakeQuantize, not its fused one: that takes another scale than conversion does, by up to 1/128.
# Least scale of anything; a channel whose weights are all zero has this one.
_LEAST_SCALE = 2.0**-24
_ATEN = torch.ops.aten
_WEIGHTED = (_ATEN.conv2d.default, _ATEN.linear.default)
_ADDS = (_ATEN.add.Tensor, _ATEN.add_.Tensor)
_RELUS = (_ATEN.relu.default, _ATEN.relu_.default)
# They only choose among numbers: what goes in rounded comes out rounded alike.
_CHOOSING = (_ATEN.max_pool2d.default, _ATEN.flatten.using_ints)


class OnnxLayout:
    """A quantizer for `prepare_qat_pt2e`, which asks for no more than these four methods.

    Activations: uint8 with a zero point, their range a running average over batches. Weights: int8 per output channel,
    symmetric, the range that of the weights themselves.

    Args:
        is_convnet: also round the sums of residual branches, as integer kernels for convolutions want it. The residual
            stream of a transformer is left in float32: few of its numbers are so large that 8 bits would lose the rest.
        reduce_range: weights in 7 bits, for CPUs that saturate sums of 8 by 8 bits.
    """

    def __init__(self, *, is_convnet: bool, reduce_range: bool) -> None:
        self.is_convnet, self.reduce_range = is_convnet, reduce_range

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """The graph as it is."""
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Say of each node what of it is rounded."""
        activation, weight = activations(), weights(reduce_range=self.reduce_range)
        for node in model.graph.nodes:
            if node.target in _WEIGHTED and _is_parameter(node.args[1]):
                inputs = {node.args[0]: activation, node.args[1]: weight}
                _annotate(node, inputs, None if _is_last(node) or _before_relu(node) else activation)
            elif node.target in _ADDS and self.is_convnet and all(_is_map(each) for each in node.args[:2]):
                inputs = dict.fromkeys(node.args[:2], activation)
                _annotate(node, inputs, None if _before_relu(node) else activation)
            elif node.target in _RELUS and _is_rounded(node.args[0]):
                _annotate(node, {}, activation)
            elif node.target in _CHOOSING and _gives_rounded(node.args[0]):
                _annotate(node, {node.args[0]: activation}, _shared_with(node.args[0], node))
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to refuse."""

    def prepare_obs_or_fq_callback(self, model: fx.GraphModule, by_place: object) -> None:
        """Nothing to change."""


def activations() -> Any:  # Any: torchao's specification
    """How activations are rounded while training."""
    from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    return QuantizationSpec(
        torch.uint8,
        FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=_LEAST_SCALE),
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
    )


def weights(*, reduce_range: bool) -> Any:  # Any: torchao's specification
    """How weights are rounded while training: by their own range, which the average of one batch alone is."""
    from torchao.quantization.pt2e import FakeQuantize, MovingAveragePerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    most = 63 if reduce_range else 127
    made = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=_LEAST_SCALE
    )
    return QuantizationSpec(
        torch.int8, made, quant_min=-most, quant_max=most, qscheme=torch.per_channel_symmetric, ch_axis=0
    )


def _annotate(node: fx.Node, inputs: dict[Any, Any], output: Any) -> None:
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)


def _shared_with(source: fx.Node, node: fx.Node) -> Any:
    from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec

    return SharedQuantizationSpec((source, node))


def _annotation(node: fx.Node) -> Any:
    return node.meta.get("quantization_annotation")


def _is_rounded(node: fx.Node) -> bool:
    """Whether the node is one of ours, its output perhaps left to the ReLU behind it."""
    return _annotation(node) is not None


def _gives_rounded(node: fx.Node) -> bool:
    known = _annotation(node)
    return known is not None and known.output_qspec is not None


def _before_relu(node: fx.Node) -> bool:
    """Whether a ReLU alone reads the node: rounding from 0 up does what it does, so it comes after."""
    users = list(node.users)
    return len(users) == 1 and users[0].target in _RELUS


def _is_last(node: fx.Node) -> bool:
    """Whether it gives the model's outputs, which stay in float32."""
    return any(user.op == "output" for user in node.users)


def _is_parameter(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _is_map(node: object) -> bool:
    """Whether it is a feature map computed from the images."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.meta["val"].ndim == 4
