"""What our side is compared with: SimCLR as lightly's documentation teaches it, put together from its parts.

torchvision reads images, `SimCLRTransform` makes views, a `DataLoader` collates them; a torchvision ResNet with
`SimCLRProjectionHead` is trained by `NTXentLoss` and SGD, one forward pass a view, in float32. None of it is ours.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ssl_ft.bench.timing import CannotMeasure, Work

# An image of this side or less gets weaker colours and no blur, as lightly's documentation advises for CIFAR.
_SMALL = 64


def check_lightly() -> None:
    """Refuse to go on without the peer.

    Raises:
        CannotMeasure: it is not installed.
    """
    if importlib.util.find_spec("lightly") is None:
        raise CannotMeasure("lightly, the peer, is not installed; pip install 'lightly>=1.6,<1.7'")


def lightly_nt_xent(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """lightly's loss of two [N, D] embeddings.

    Raises:
        CannotMeasure: lightly is not installed.
    """
    check_lightly()
    from lightly.loss import NTXentLoss

    loss: Callable[[Tensor, Tensor], Tensor] = NTXentLoss(temperature=temperature)
    return loss


def simclr_transform(size: int) -> Callable[[Image.Image], list[Tensor]]:
    """lightly's transform: a PIL image -> two normalised views float32 [3, size, size]."""
    from lightly.transforms import SimCLRTransform

    small = {"cj_strength": 0.5, "gaussian_blur": 0.0} if size <= _SMALL else {}
    transform: Callable[[Image.Image], list[Tensor]] = SimCLRTransform(input_size=size, **small)
    return transform


class ArrayImages(Dataset[tuple[list[Tensor], int]]):
    """Images in memory as torchvision's CIFAR keeps them: made a PIL image and transformed at each access.

    Args:
        images_NHWC: uint8 [N, H, W, 3].
        transform: a PIL image -> views.
    """

    def __init__(self, images_NHWC: NDArray[np.uint8], transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images_NHWC, self.transform = images_NHWC, transform

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.images_NHWC[index])), 0


class LightlySimCLR(nn.Module):
    """The model of the recipe: torchvision's ResNet-18 with a 3 x 3 stem of stride 1, and lightly's projection head."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules import SimCLRProjectionHead
        from torchvision.models import resnet18

        resnet = resnet18()
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, 128] of images [B, 3, H, W]."""
        embeddings: Tensor = self.projection_head(self.backbone(images).flatten(start_dim=1))
        return embeddings


def prepare_training(
    images_NHWC: NDArray[np.uint8],
    *,
    size: int,
    batch_size: int,
    num_steps: int,
    workers: int,
    autocast: torch.dtype | None = None,
) -> Work:
    """Work that goes on training for `num_steps` steps, from images to weights.

    Args:
        images_NHWC: uint8 [N, H, W, 3].
        size: side of the views.
        batch_size: images a step.
        num_steps: steps a call.
        workers: processes that make views; they stay between calls and make none ahead of the next call.
        autocast: dtype of mixed precision; None is the recipe's float32.

    Raises:
        CannotMeasure: lightly is not installed.
    """
    criterion = lightly_nt_xent(0.5)  # its default
    dataset = ArrayImages(images_NHWC, simclr_transform(size))
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=RandomSampler(dataset, num_samples=num_steps * batch_size, generator=generator),
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=generator,
    )
    model = LightlySimCLR()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

    def block() -> None:
        for (first, second), _ in loader:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = criterion(model(first), model(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return block


def photo_batches(folder: Path, *, size: int, batch_size: int) -> Iterator[Any]:
    """Endless batches of two views each, from files: `ImageFolder`, lightly's transform, a loader in this process.

    Args:
        folder: class folders, as `ImageFolder` wants them.
        size: side of the views.
        batch_size: images a batch.

    Raises:
        CannotMeasure: lightly is not installed.
    """
    check_lightly()
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder), transform=simclr_transform(size))
    generator = torch.Generator().manual_seed(0)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, drop_last=True, generator=generator
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))
