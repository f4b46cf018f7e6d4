"""A classifier captured by torch.export, rounded as it computes, trained so, and converted to 8 bits: torchao's PT2E.

Not here: where an ONNX graph is rounded (`quantize_layout.py`), post-training by ONNX Runtime (`quantize_onnx.py`).
"""

import copy
import operator
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssl_ft.compress.quantize_layout import OnnxLayout, activations, weights
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.export.program_file import save_program
from ssl_ft.export.unwritable import refusing_layers

# The graph takes any number of images up to this.
_MOST_IMAGES = 65536
_BARE_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default
_BATCH_NORMS = (torch.ops.aten.batch_norm.default, _BARE_BATCH_NORM)


class RoundedModel(nn.Module):
    """A classifier that computes as its 8-bit form will, in float32 and with gradients: [B, C, S, S] -> [B, K].

    In training mode the ranges of activations follow the batches; in evaluation mode they stay as they are. Batch
    norms are folded into their convolutions before, and dropout is gone.

    Args:
        graph: from `prepare_rounded`.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """What the model gives."""
        outputs: Tensor = self.graph(images_BCHW)
        return outputs

    def train(self, mode: bool = True) -> "RoundedModel":
        """Let ranges follow, or not. A captured graph has no modes of its own and refuses to be asked for one."""
        self.training = mode
        for module in self.graph.modules():
            switch = getattr(module, "observer_enabled", None)
            if switch is not None:
                switch.fill_(int(mode))
        return self


def capture(model: nn.Module, *, channels: int, size: int) -> fx.GraphModule:
    """The graph of a classifier in evaluation mode, for any number of images, batch norms folded; the model stays.

    Args:
        model: [B, C, S, S] -> [B, K].
        channels: C.
        size: S.
    """
    example = (torch.zeros(2, channels, size, size),)
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    with refusing_layers(model, what="a graph to be rounded"):
        exported = torch.export.export(copy.deepcopy(model).eval(), example, dynamic_shapes=({0: batch},))
    graph = exported.module(check_guards=False)
    _fold_batch_norms(graph)
    return graph


def _fold_batch_norms(graph: fx.GraphModule) -> None:
    """Put each batch norm behind a convolution into its weight and bias."""
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.target in _BATCH_NORMS else None
        if not isinstance(before, fx.Node) or before.target is not torch.ops.aten.conv2d.default:
            continue
        if len(before.users) > 1:
            continue
        _fold(graph, before, node)
    graph.graph.eliminate_dead_code()
    _drop_unread(graph)
    graph.recompile()


def _fold(graph: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
    scale, shift, mean, var = (_value(graph, each) for each in norm.args[1:5])
    eps = norm.args[6 if norm.target is _BARE_BATCH_NORM else 7]
    own = _value(graph, weight)
    assert own is not None, "a convolution has a weight"
    assert mean is not None, "a batch norm in evaluation mode has statistics"
    assert var is not None, "a batch norm in evaluation mode has statistics"
    new_weight, new_bias = fuse_conv_bn_weights(
        own, _value(graph, bias), mean, var, float(cast(float, eps)), scale, shift
    )
    name = str(cast(fx.Node, weight).target)
    _set(graph, name, new_weight)
    bias_name = f"{name.replace('.', '_')}_folded_bias"
    graph.register_parameter(bias_name, nn.Parameter(new_bias.detach()))
    with graph.graph.inserting_before(conv):
        bias_node = graph.graph.get_attr(bias_name)
        bias_node.meta["val"] = new_bias.detach()
    conv.args = (conv.args[0], weight, bias_node, *conv.args[3:])
    # This one gives (outputs, mean, deviation), of which the first is read.
    readers = list(norm.users) if norm.target is _BARE_BATCH_NORM else [norm]
    for reader in readers:
        assert reader is norm or reader.target is operator.getitem, "three results are taken apart"
        reader.replace_all_uses_with(conv)


def _value(graph: fx.GraphModule, node: object) -> Tensor | None:
    if node is None:
        return None
    value: Any = graph
    for part in str(cast(fx.Node, node).target).split("."):
        value = getattr(value, part)
    return cast(Tensor, value)


def _set(graph: fx.GraphModule, name: str, value: Tensor) -> None:
    *path, last = name.split(".")
    holder: Any = graph
    for part in path:
        holder = getattr(holder, part)
    setattr(holder, last, nn.Parameter(value.detach()))


def prepare_rounded(
    graph: fx.GraphModule, batches: Iterable[Tensor], *, engine: str, is_convnet: bool, reduce_range: bool
) -> RoundedModel:
    """The graph made ready to be trained as its 8-bit form, its ranges begun on images.

    Args:
        graph: from `capture`; changed in place.
        batches: float32 [B, C, S, S] each, as the model takes them.
        engine: "onnxruntime" or "pt2e": whose integer kernels are to run it.
        is_convnet: see `OnnxLayout`.
        reduce_range: see `OnnxLayout`.
    """
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    layout = _x86(is_qat=True, reduce_range=reduce_range)
    if engine == "onnxruntime":
        layout = OnnxLayout(is_convnet=is_convnet, reduce_range=reduce_range)
    with _without_pooling_warning():
        model = RoundedModel(prepare_qat_pt2e(graph, layout))
    _observe(model.train(), batches)
    return model


def _x86(*, is_qat: bool, reduce_range: bool) -> Any:  # Any: torchao's quantizer
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    if is_qat:
        # Its own for training takes other scales while training than at conversion.
        config = x86.QuantizationConfig(activations(), activations(), weights(reduce_range=reduce_range), None, True)
    return x86.X86InductorQuantizer().set_global(config)


@contextmanager
def _without_pooling_warning() -> Iterator[None]:
    """Let torchao leave a pooling in float32 without the whole configuration on stderr: it says no more than that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The input of maxpool2d is not quantized", UserWarning)
        yield


@torch.no_grad()
def _observe(model: nn.Module, batches: Iterable[Tensor]) -> None:
    for batch in batches:
        model(batch)


def calibrated(graph: fx.GraphModule, batches: Iterable[Tensor], *, reduce_range: bool) -> fx.GraphModule:
    """The 8-bit form of a graph without training, in torchao's layout for x86.

    Args:
        graph: from `capture`; changed in place.
        batches: float32 [B, C, S, S] each, from which ranges are read.
        reduce_range: activations in 7 bits, for CPUs that saturate.
    """
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    with _without_pooling_warning():
        prepared = prepare_pt2e(graph, _x86(is_qat=False, reduce_range=reduce_range))
    _observe(prepared, batches)
    return _converted(prepared)


def converted(model: RoundedModel) -> fx.GraphModule:
    """The 8-bit form of a trained model, which stays as it is: int8 weights, integers rounded from and back to float32.

    Nothing is kept that it does not compute with.
    """
    return _converted(copy.deepcopy(model.graph).cpu())


def _converted(prepared: fx.GraphModule) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    graph = cast(fx.GraphModule, convert_pt2e(prepared))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    _drop_unread(graph)
    graph.recompile()
    for module in graph.modules():
        module.training = False
    return graph


def _drop_unread(graph: fx.GraphModule) -> None:
    """Take out weights that nothing reads any more, folded or made integers: they would be written too."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for module_name, module in graph.named_modules():
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if f"{module_name}.{n}".lstrip(".") not in read]:
                del store[name]


def write_quantized_onnx(graph: fx.GraphModule, path: Path, *, channels: int, size: int) -> None:
    """Write a converted graph as ONNX with int8 weights; a rounding is a pair of QuantizeLinear, DequantizeLinear."""
    write_onnx(graph, path, channels=channels, size=size, is_annotated=True)


def write_pt2(graph: fx.GraphModule, path: Path, *, channels: int, size: int) -> None:
    """Write a converted graph as torch.export's file, which `export.program_file.load_program` reads."""
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    exported = torch.export.export(graph, (torch.zeros(2, channels, size, size),), dynamic_shapes=({0: batch},))
    save_program(exported, path)
