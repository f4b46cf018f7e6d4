"""Small classifiers whose branches all count, as float32 ONNX files; and running such files."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_ft.compress.quantize_choice import needs_reduced_range
from ssl_ft.export.onnx_file import write_onnx

SIDE, CLASSES = 32, 5
Images = NDArray[np.float32]
FULL_RANGE = pytest.mark.skipif(
    needs_reduced_range(), reason="this CPU saturates sums of full 8-bit products; weights take 7 bits on it"
)


class OneLayer(nn.Module):
    """Pixels, flat, through one linear layer."""

    def __init__(self, *, side: int = 4, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(3 * side * side, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.copy_(torch.randn(CLASSES, generator=generator))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        outputs: Tensor = self.head(images_BCHW.flatten(1))
        return outputs


def resnet(*, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES, zero_init_last=False)
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bn1.bias", "bn2.bias")):
                tensor.normal_(0, 0.1)
    return model.eval()


def vit(*, seed: int = 0, width: int = 192, depth: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", num_classes=CLASSES, img_size=SIDE, patch_size=8, depth=depth, embed_dim=width,
            class_token=False, global_pool="avg",
        )  # fmt: skip
    return model.eval()


def write(model: nn.Module, path: Path, *, side: int = SIDE) -> Path:
    write_onnx(model.eval(), path, channels=3, size=side, is_annotated=True)
    return path


def batches(count: int = 2, *, side: int = SIDE, seed: int = 1) -> list[Images]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((8, 3, side, side)).astype(np.float32) for _ in range(count)]


def run(path: Path, images: Images) -> Images:
    """What ONNX Runtime alone makes of them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"images": images})
    return np.asarray(outputs, np.float32)


def distance(one: Images, other: Images) -> float:
    """Of the outputs of two models, as a share of those of the second."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def integer_weights(path: Path) -> list[NDArray[np.int8]]:
    """Tensors of 8 bits with 2 axes or more."""
    kept = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer]
    return [t for t in kept if t.dtype in (np.int8, np.uint8) and t.ndim > 1]
