"""Outputs of a model averaged over views of each image (test-time augmentation); nothing is drawn at random.

Probabilities are averaged, not logits; numbers as they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.evaluate.features import compute_outputs

# What an output means: shares of classes, probability of each label, numbers in the user's units.
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda logits: logits.softmax(1),
    "multi_label": lambda logits: logits.sigmoid(),
    "regression": lambda outputs: outputs,
}
# Ten crops are cut from images this much larger than the model's input, as 224 is cut from 256.
_CROP_FACTOR = 256 / 224


def reading_contract(contract: InputContract, *, how: str) -> InputContract:
    """How images are to be read for `mean_outputs`: larger for crops, else as the model takes them."""
    return replace(contract, size=round(_CROP_FACTOR * contract.size)) if how == "crops" else contract


def mean_outputs(
    model: nn.Module,
    pixels: NDArray[np.uint8],
    contract: InputContract,
    *,
    task: str,
    how: str,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float32]:
    """Probabilities, or numbers, of each image, float32 [N, K].

    Args:
        model: moved to `device` and set to evaluation mode.
        pixels: uint8 [N, C, side, side] as `reading_contract` says.
        contract: the model's input.
        task: "classes", "multi_label" or "regression".
        how: "none"; "flip": the image and its mirror image; "crops": four corners and the centre, and their mirror
            images.
        device: where to compute.
        batch_size: images a forward pass.
    """

    def outputs(view: NDArray[np.uint8]) -> NDArray[np.float32]:
        return compute_outputs(model, view, contract, device=device, batch_size=batch_size)

    return mean_over_views(outputs, pixels, contract, task=task, how=how)


def mean_over_views(
    outputs: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    pixels: NDArray[np.uint8],
    contract: InputContract,
    *,
    task: str,
    how: str,
) -> NDArray[np.float32]:
    """The same for whatever gives a model's outputs [N, K] of images as the contract wants them."""
    total, count = np.zeros(1, np.float32), 0
    for view in _views(pixels, contract.size, how=how):
        total, count = total + LINKS[task](torch.from_numpy(outputs(view))).numpy(), count + 1
    return np.asarray(total / np.float32(count), dtype=np.float32)


def _views(pixels: NDArray[np.uint8], size: int, *, how: str) -> Iterator[NDArray[np.uint8]]:
    assert how in ("none", "flip", "crops"), how
    room = pixels.shape[2] - size
    places = [(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)] if how == "crops" else [(0, 0)]
    for top, left in places:
        crop = np.ascontiguousarray(pixels[:, :, top : top + size, left : left + size])
        yield crop
        if how != "none":
            yield np.ascontiguousarray(crop[:, :, :, ::-1])
