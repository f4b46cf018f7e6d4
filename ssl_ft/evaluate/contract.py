"""What a model's input contract does to a source's images: which are refused, enlarged, reduced, cut, converted.

Images are decoded once, for this account and for whatever is computed of them. Not here: features, comparing sources.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.data.images import DamagedImage, decode, resize_center_crop, to_channels
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError

# Images whose brightest pixel is below a quarter of white were most likely scaled by another white than theirs.
_DARK = 64


@dataclass(frozen=True, eq=False)
class Account:
    """How a sample of images meets a contract.

    Attributes:
        pixels: uint8 [N, C, size, size], those that are taken.
        num_images: looked at.
        damaged: (name, reason) of those that cannot be read.
        refused: (name, reason) of those with channels the model does not take.
        short_side: median in pixels of those taken, before the resize; 0 where none is.
        num_enlarged: short side below the model's.
        num_reduced: short side above it.
        num_cropped: not square, so that their ends are cut off.
        num_converted: grey to colour or colour to grey.
        lowest: darkest value of any, of 255.
        highest: brightest value of any.
    """

    pixels: NDArray[np.uint8]
    num_images: int
    damaged: list[tuple[str, str]]
    refused: list[tuple[str, str]]
    short_side: int
    num_enlarged: int
    num_reduced: int
    num_cropped: int
    num_converted: int
    lowest: int
    highest: int

    def sentences(self, contract: InputContract, *, whose: str) -> list[str]:
        """What a reader should know; `whose` names the images, such as "target"."""
        taken, size = len(self.pixels), contract.size
        found = [f"{whose}: {taken} of {self.num_images} images looked at meet what the encoder takes"]
        for images, what in ((self.damaged, "cannot be read"), (self.refused, "would be refused")):
            if images:
                found.append(f"{whose}: {len(images)} images {what}; the first is {images[0][0]}: {images[0][1]}")
        changes = [
            f"{number} {what}"
            for number, what in (
                (self.num_enlarged, f"are enlarged to {size} px"),
                (self.num_reduced, f"are reduced to {size} px"),
                (self.num_cropped, "are not square and lose their ends"),
                (self.num_converted, f"are brought to {contract.channels} channel{'s' * (contract.channels > 1)}"),
            )
            if number
        ]
        if changes:
            found.append(f"{whose}: {', '.join(changes)}; their median short side is {self.short_side} px")
        if taken:
            found.append(f"{whose}: values run from {self.lowest} to {self.highest} of 255")
            if self.highest < _DARK:
                found.append(
                    f"{whose}: no pixel reaches a quarter of white; 16-bit images may need another white level than "
                    f"the encoder's {contract.white_level}"
                )
        return found


def take_account(
    source: Source, indices: NDArray[np.int64], contract: InputContract, *, max_pixels: int, workers: int
) -> Account:
    """Decode images in the evaluation geometry and count what happens to them on the way.

    Args:
        source: where the images are.
        indices: int64 [N], which of them.
        contract: the model's input.
        max_pixels: larger images count as damaged.
        workers: decoding threads.
    """
    counts: Counter[str] = Counter()
    damaged, refused = [], []
    pixels, sides, ends = [], [], []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        read = [pool.submit(_read, source, index, contract, max_pixels) for index in indices.tolist()]
        for index, future in zip(indices.tolist(), read, strict=True):
            try:
                image, shape, span = future.result()
            except (DamagedImage, OSError) as error:
                damaged.append((source.names[index], str(error)))
                continue
            except UserError as error:
                refused.append((source.names[index], str(error)))
                continue
            channels, short, is_square = shape[0], min(shape[1:]), shape[1] == shape[2]
            counts["enlarged"] += short < contract.size
            counts["reduced"] += short > contract.size
            counts["cropped"] += not is_square
            counts["converted"] += channels != contract.channels
            pixels.append(image)
            sides.append(short)
            ends.append(span)
    empty = np.empty((0, contract.channels, contract.size, contract.size), np.uint8)
    return Account(
        np.stack(pixels) if pixels else empty,
        len(indices),
        damaged,
        refused,
        int(np.median(sides)) if sides else 0,
        counts["enlarged"],
        counts["reduced"],
        counts["cropped"],
        counts["converted"],
        min((low for low, _ in ends), default=0),
        max((high for _, high in ends), default=0),
    )


def _read(
    source: Source, index: int, contract: InputContract, max_pixels: int
) -> tuple[NDArray[np.uint8], tuple[int, ...], tuple[int, int]]:
    """The image as the model takes it, its shape before, and its darkest and brightest value."""
    image = decode(source.read(index), max_pixels=max_pixels, white_level=contract.white_level)
    span = int(image.min()), int(image.max())
    fitted = to_channels(image, contract.channels)
    return resize_center_crop(fitted, contract.size, interpolation="bilinear"), image.shape, span
