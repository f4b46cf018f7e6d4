"""A model's outputs for all images of a source, block by block, in memory that does not grow with the images.

What is done with a block is decided by the stages; where all features fit into memory anyway, `features.py` serves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import compute_outputs, read_inputs

# Decoded pixels of a block; images of 224 px come some 400 at a time, small ones 2048.
_BLOCK_BYTES = 64 * 2**20
_MOST_IMAGES = 2048
_MAX_PIXELS = 89_478_485
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class OutputBlock:
    """Some images of a source.

    Attributes:
        indices: int64 [N], which images; damaged ones are missing.
        outputs: float32 [N, D].
        done: images of the source walked over so far, damaged ones included.
    """

    indices: NDArray[np.int64]
    outputs: NDArray[np.float32]
    done: int


class Damage:
    """The damaged images met on the way, and the share of them that is put up with.

    Args:
        source: whose images they are.
        max_share: share of its images past which the walk stops.
    """

    def __init__(self, source: Source, *, max_share: float) -> None:
        self.met: list[tuple[str, str]] = []
        self._location, self._total, self._max_share = source.location, len(source), max_share

    def add(self, damaged: Sequence[tuple[str, str]]) -> None:
        """Take note of (name, reason) of some.

        Raises:
            UserError: there are too many by now.
        """
        self.met += damaged
        if len(self.met) > self._max_share * self._total:
            first = "; ".join(f"{name} ({reason})" for name, reason in self.met[:_SHOWN])
            raise UserError(
                f"{self._location}: at least {len(self.met)} of {self._total} images cannot be read ({first}), more "
                f"than max_damaged_share={self._max_share}; nothing was written. Mend them, or raise the share"
            )

    def sentences(self) -> list[str]:
        """What to tell: each image left out with its reason, the first twenty by name."""
        told = [f"left out: {name} ({reason})" for name, reason in self.met[:20]]
        return told + ([f"left out: {len(self.met) - 20} more that cannot be read"] if len(self.met) > 20 else [])


def walk_outputs(
    model: nn.Module,
    source: Source,
    contract: InputContract,
    *,
    device: torch.device,
    batch_size: int,
    damage: Damage,
    workers: int = 2,
) -> Iterator[OutputBlock]:
    """Go through the source in its order; blocks without a readable image are passed over.

    Args:
        model: encoder or classifier, moved to `device` and set to evaluation mode.
        source: the images.
        contract: the model's input.
        device: where to compute.
        batch_size: images a forward pass.
        damage: keeps what could not be read.
        workers: decoding threads.

    Raises:
        UserError: images of other channels than the model takes, too many damaged ones, or no other.
    """
    size = max(1, min(_MOST_IMAGES, _BLOCK_BYTES // (contract.channels * contract.size**2)))
    readable = 0
    for start in range(0, len(source), size):
        block = np.arange(start, min(start + size, len(source)))
        inputs = read_inputs(source, block, contract, max_damaged_share=1.0, max_pixels=_MAX_PIXELS, workers=workers)
        damage.add(inputs.damaged)
        readable += len(inputs.indices)
        if len(inputs.indices):
            outputs = compute_outputs(model, inputs.pixels, contract, device=device, batch_size=batch_size)
            yield OutputBlock(inputs.indices, outputs, int(block[-1]) + 1)
    if not readable:
        raise UserError(f"{source.location}: not one of {len(source)} images can be read; nothing was written")
