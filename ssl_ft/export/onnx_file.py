"""A classifier as an ONNX file: from float32 images of any batch size, already normalised, to its outputs."""

from pathlib import Path

import torch
from torch import nn


def write_onnx(model: nn.Module, path: Path, *, channels: int, size: int) -> None:
    """Write the model with a free batch size, its weights inside the file.

    Args:
        model: in evaluation mode, on the CPU: float32 [B, C, size, size] -> float32 [B, K].
        path: the file.
        channels: C.
        size: side of the images.
    """
    example = torch.zeros(2, channels, size, size)
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
