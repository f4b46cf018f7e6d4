"""Features of labelled images: decode by the model's input contract, forward in blocks; raw pixels too.

No label is looked at here.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.data.images import DamagedImage, decode, resize_center_crop, to_channels
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles
from ssl_ft.errors import UserError

_PIXEL_SIDE = 32


@dataclass(frozen=True)
class Inputs:
    """Images ready for a model.

    Attributes:
        pixels: uint8 [N, C, size, size].
        indices: int64 [N], which images of the source they are; damaged ones are missing.
        damaged: (name, reason) of those.
    """

    pixels: NDArray[np.uint8]
    indices: NDArray[np.int64]
    damaged: list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """One model's features of all images that have a role.

    Attributes:
        model: "encoder", "untrained" or "pixels".
        features: float32 [N, D].
        labels: int64 [N].
        roles: places in the N rows.
        indices: int64 [N], which images of the source they are; damaged ones are missing.
    """

    model: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    roles: Roles
    indices: NDArray[np.int64]


def read_inputs(
    source: Source,
    indices: NDArray[np.int64],
    contract: InputContract,
    *,
    max_damaged_share: float,
    max_pixels: int,
    workers: int,
) -> Inputs:
    """Decode images in the evaluation geometry: short side to size, centre cut out.

    Args:
        source: where the images are.
        indices: int64 [N], which of them.
        contract: the model's input.
        max_damaged_share: share of damaged images past which nothing is judged.
        max_pixels: larger images count as damaged.
        workers: decoding threads.

    Raises:
        UserError: too many damaged images, or images with other channels than the model takes.
    """

    def read(index: int) -> NDArray[np.uint8] | str:
        try:
            image = decode(source.read(index), max_pixels=max_pixels, white_level=contract.white_level)
        except (DamagedImage, OSError) as error:
            return str(error)
        try:
            image = to_channels(image, contract.channels)
        except UserError as error:
            raise UserError(f"{source.names[index]}: {error}") from error
        return resize_center_crop(image, contract.size, interpolation="bilinear")

    with ThreadPoolExecutor(max(1, workers)) as pool:
        read_images = list(pool.map(read, indices.tolist()))
    damaged = [(source.names[i], x) for i, x in zip(indices.tolist(), read_images, strict=True) if isinstance(x, str)]
    _check_share(source, damaged, total=len(indices), most=max_damaged_share)
    kept = [not isinstance(x, str) for x in read_images]
    images = [x for x in read_images if not isinstance(x, str)]
    shape = (0, contract.channels, contract.size, contract.size)
    return Inputs(np.stack(images) if images else np.empty(shape, np.uint8), indices[np.array(kept, bool)], damaged)


def read_blocks(
    source: Source,
    indices: NDArray[np.int64],
    contract: InputContract,
    *,
    block: int,
    max_damaged_share: float,
    max_pixels: int,
    workers: int,
) -> Iterator[Inputs]:
    """What `read_inputs` gives, in parts of `block` readable images each, the last fewer; its damage comes along.

    Parts are full whatever is damaged, so that a model which goes through them in batches that divide `block` meets the
    batches it would meet in the whole.

    Raises:
        UserError: as `read_inputs`, as soon as too many are damaged.
    """
    shape = (0, contract.channels, contract.size, contract.size)
    pixels, numbers = np.empty(shape, np.uint8), np.empty(0, np.int64)
    damaged: list[tuple[str, str]] = []
    num_told = 0
    for start in range(0, len(indices), block):
        chosen = indices[start : start + block]
        read = read_inputs(source, chosen, contract, max_damaged_share=1.0, max_pixels=max_pixels, workers=workers)
        damaged += read.damaged
        is_last = start + block >= len(indices)
        _check_share(source, damaged, total=len(indices), most=max_damaged_share, is_counted=is_last)
        pixels, numbers = np.concatenate([pixels, read.pixels]), np.concatenate([numbers, read.indices])
        ready = len(pixels) if is_last else len(pixels) // block * block
        for first in range(0, ready, block):
            part = slice(first, min(first + block, ready))
            yield Inputs(pixels[part], numbers[part], damaged[num_told:])
            num_told = len(damaged)
        pixels, numbers = pixels[ready:], numbers[ready:]
    if num_told < len(damaged):
        yield Inputs(pixels, numbers, damaged[num_told:])


def _check_share(
    source: Source, damaged: list[tuple[str, str]], *, total: int, most: float, is_counted: bool = True
) -> None:
    if len(damaged) > most * total:
        first = "; ".join(f"{name} ({reason})" for name, reason in damaged[:5])
        raise UserError(
            f"{source.location}: {'' if is_counted else 'at least '}{len(damaged)} of {total} images cannot be read, "
            f"more than max_damaged_share={most} allows: {first}. Mend or remove them, or raise the share"
        )


@torch.no_grad()
def compute_outputs(
    model: nn.Module,
    pixels: NDArray[np.uint8],
    contract: InputContract,
    *,
    device: torch.device,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """What the model gives for each image: features of an encoder, logits of a classifier.

    Args:
        model: moved to `device` and set to evaluation mode.
        pixels: uint8 [N, C, size, size].
        contract: the model's input.
        device: where to compute.
        batch_size: images a forward pass.
        on_progress: called with the number of images done.

    Returns:
        float32 [N, D].
    """
    model = model.to(device).eval()
    blocks = []
    for start in range(0, len(pixels), batch_size):
        block = torch.from_numpy(pixels[start : start + batch_size]).to(device)
        # Convolutions follow the layout of their input, and are up to twice as fast in this one.
        inputs = contract.normalise(block).contiguous(memory_format=torch.channels_last)
        blocks.append(model(inputs).float().cpu().numpy())
        if on_progress is not None:
            on_progress(min(start + batch_size, len(pixels)))
    return np.concatenate(blocks)


def pixel_features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The images themselves as features, at most 32 x 32 pixels, float32 [N, C·h·w] in [0, 1]."""
    images = torch.from_numpy(pixels)
    if images.shape[2] > _PIXEL_SIDE:
        parts = [
            torch.nn.functional.interpolate(part.float(), size=_PIXEL_SIDE, mode="bilinear", antialias=True)
            for part in images.split(1024)
        ]
        images = torch.cat(parts)
    flat: NDArray[np.float32] = (images.flatten(1).float() / 255).numpy()
    return flat
