"""What of an ONNX graph is in 8 bits and which layers are not, read from the graph itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_ft.export.onnx_file import drop_annotations

_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Account:
    """What became of a model's layers.

    Attributes:
        num_quantized: layers whose weights are in 8 bits.
        left: names of the layers whose weights stayed in float32, as timm calls them where that is known.
        share: of all weights of layers, how many are in 8 bits.
    """

    num_quantized: int
    left: tuple[str, ...]
    share: float

    def sentence(self) -> str:
        """In words, for a reader of the run."""
        kept = f"in float32 stay {', '.join(self.left)}" if self.left else "no layer stays in float32"
        layers = "layer" if self.num_quantized == 1 else "layers"
        return f"{self.num_quantized} {layers} in 8 bits, {self.share:.1%} of the layers' weights; {kept}"


def settle(path: Path) -> Account:
    """Read which layers of an annotated ONNX file are in 8 bits, and take the annotations out of it."""
    import onnx

    model = onnx.load(str(path))
    account = account_of(model.graph)
    drop_annotations(model)
    onnx.save(model, str(path))
    return account


def account_of(graph: Any) -> Account:
    """Which layers of an ONNX graph are in 8 bits."""
    import onnx

    types, sizes = {}, {}
    for held in graph.initializer:
        types[held.name], sizes[held.name] = held.data_type, _num_elements(held)
    # A weight may be rounded back to float, or turned over, on its way to its layer.
    makers = {name: node for node in graph.node for name in node.output}
    left, num_float = [], 0
    for node in graph.node:
        if node.op_type in _WEIGHTED and types.get(node.input[1]) == onnx.TensorProto.FLOAT:
            left.append(_layer_name(node))
            num_float += sizes[node.input[1]]
    in_8_bits = {_source(name, makers) for node in graph.node for name in node.input[1:]}
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    held_8 = [h.name for h in graph.initializer if h.data_type in integers and len(h.dims) > 1 and h.name in in_8_bits]
    num_8 = sum(sizes[name] for name in held_8)
    return Account(len(held_8), tuple(left), num_8 / max(1, num_8 + num_float))


def _source(name: str, makers: dict[str, Any]) -> str:
    """The tensor that a weight was stored as."""
    while name in makers and makers[name].op_type in ("DequantizeLinear", "Transpose"):
        name = makers[name].input[0]
    return name


def _num_elements(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _layer_name(node: Any) -> str:
    """timm's name of a node's layer: that of its weight, or of the module it was exported from."""
    name = str(node.input[1])
    if name.endswith(".weight"):
        return name.removesuffix(".weight")
    scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
    # "['', 'blocks', 'blocks.0', 'linear']": modules from the outside in, then the operation.
    path = [part.strip(" '") for part in (scopes or "[]")[1:-1].split(",")]
    path = [part for part in path if part][:-1]
    return str(path[-1]) if path else str(node.name)
