"""A model that normalises by itself: uint8 images in, so that whoever runs it needs neither mean nor std.

Decoding, resizing and cutting out stay outside: `model.json` states them.
"""

import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract


class Normalised(nn.Module):
    """The model behind its normalisation.

    Args:
        model: float32 [B, C, size, size] -> [B, K].
        contract: mean and std.
        layout: "nchw": takes uint8 [B, C, size, size]; "nhwc": uint8 [B, size, size, C].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, contract: InputContract, *, layout: str) -> None:
        super().__init__()
        assert layout in ("nchw", "nhwc"), layout
        self.model, self.layout = model, layout
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(contract, name)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, K] of uint8 images."""
        images_BCHW = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        outputs: Tensor = self.model((images_BCHW.float() / 255 - self.mean) / self.std)
        return outputs
