"""A model as an ONNX file with a free batch size, its weights inside; what else goes into the graph is its caller's."""

from pathlib import Path

import torch
from torch import Tensor, nn


def write_onnx(model: nn.Module, path: Path, *, channels: int, size: int) -> None:
    """Write a model that takes float32 images already normalised.

    Args:
        model: in evaluation mode, on the CPU: float32 [B, C, size, size] -> float32 [B, K].
        path: the file.
        channels: C.
        size: side of the images.
    """
    write_onnx_graph(model, path, example=torch.zeros(2, channels, size, size))


def write_onnx_graph(model: nn.Module, path: Path, *, example: Tensor) -> None:
    """Write a model of any input.

    Args:
        model: in evaluation mode, on the CPU: one tensor in, one out, batch first.
        path: the file.
        example: an input of two images; all its dimensions but the first are fixed by it.
    """
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
