"""A model as an ONNX file with a free batch size, its weights inside; what else goes into the graph is its caller's."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ft.export.unwritable import refusing_layers


def write_onnx(model: nn.Module, path: Path, *, channels: int, size: int, is_annotated: bool = False) -> None:
    """Write a model that takes float32 images already normalised.

    Args:
        model: in evaluation mode, on the CPU: float32 [B, C, size, size] -> float32 [B, K].
        path: the file.
        channels: C.
        size: side of the images.
        is_annotated: see `write_onnx_graph`.
    """
    write_onnx_graph(model, path, example=torch.zeros(2, channels, size, size), is_annotated=is_annotated)


def write_onnx_graph(model: nn.Module, path: Path, *, example: Tensor, is_annotated: bool = False) -> None:
    """Write a model of any input.

    Args:
        model: in evaluation mode, on the CPU: one tensor in, one out, batch first.
        path: the file.
        example: an input of two images; all its dimensions but the first are fixed by it.
        is_annotated: leave in the file what the exporter notes of this machine: for each node the stack of calls, with
            paths, and the module it comes from. A large part of a small model, and of no use to whoever runs it.

    Raises:
        UserError: the model has layers that ONNX has no words for.
    """
    with refusing_layers(model, what="ONNX"):
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            verbose=False,
        )
    if not is_annotated:
        strip_annotations(path)


def strip_annotations(path: Path) -> None:
    """Take out of an ONNX file what its exporter noted of this machine."""
    import onnx

    model = onnx.load(str(path))
    drop_annotations(model)
    onnx.save(model, str(path))


def drop_annotations(model: Any) -> None:
    """The same of a model that was read, in place."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del holder.metadata_props[:]
