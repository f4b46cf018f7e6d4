"""The pool of images as training reads it: decoded once into square uint8 tensors, or anew each time into views.

A square holds the whole image squashed; its aspect is kept beside it, so that crops regain its shape. Damaged images
are replaced by others in an order that depends on the seed alone, and listed; too many of them stop the run.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ssl_ft import dist
from ssl_ft.data.cuts import cut_views
from ssl_ft.data.images import DamagedImage, Pixels, decode, resize_square, to_channels
from ssl_ft.data.source import Source
from ssl_ft.data.views import ViewRecipe
from ssl_ft.errors import UserError
from ssl_ft.seeding import derive_seed

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """An image that could not be read: its name, why, and the name of the image that stands in for it."""

    name: str
    reason: str
    replacement: str


@dataclass(frozen=True)
class DecodeOptions:
    """How files become pixels.

    Attributes:
        channels: C every image is brought to.
        side: S of the stored square.
        white_level: value of 16-bit images that means white.
        max_pixels: larger files are damaged by definition.
        is_draft: let JPEG decode at a reduced size where it is at least twice the side.
        max_damaged_share: of the pool; past it the run stops.
        workers: decoding threads.
    """

    channels: int
    side: int
    white_level: int = 65535
    max_pixels: int = 89_478_485
    is_draft: bool = False
    max_damaged_share: float = 0.01
    workers: int = 2


class ImageStore:
    """Images by number: `fetch(indices) -> (uint8 [B, C, S, S], float32 [B] aspects)`.

    Args:
        source: where the images are.
        options: how to decode them.
        seed: decides which image replaces a damaged one.
        is_decoded: decode all of it now.
        memory_map: file that holds the decoded pixels; None keeps them in memory.
        is_class_kept: replace damaged images by others of their class, where labels are trained on.
        on_progress: called with the number of images decoded so far.

    Raises:
        UserError: more damaged images than `options.max_damaged_share` allows; the first ones are listed.
    """

    def __init__(
        self,
        source: Source,
        options: DecodeOptions,
        *,
        seed: int,
        is_decoded: bool,
        memory_map: Path | None = None,
        is_class_kept: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.source, self.options, self.seed = source, options, seed
        self._classes = source.labels if is_class_kept else None
        self.is_decoded = False
        self._damaged: dict[int, str] = {}
        # Met by other ranks or before a resume: counted and listed, but read anew, for it may have been mended.
        self._heard_of: dict[int, str] = {}
        self._met: set[int] = set()  # both together
        self._lock = threading.Lock()
        if is_decoded:
            self._pixels, self._aspects = self._decode_all(memory_map, on_progress)
            self.is_decoded = True

    def __len__(self) -> int:
        return len(self.source)

    @property
    def damages(self) -> list[Damage]:
        """The damaged images met so far, or heard of, by number."""
        found = sorted((self._heard_of | self._damaged).items())
        return [Damage(self.source.names[i], reason, self.source.names[self._stand_in(i)]) for i, reason in found]

    def share_damages(self) -> dict[int, str]:
        """The damaged images that any rank has met so far, and why, by number; every rank must call it, and lists them.

        Raises:
            UserError: all together they are more than `options.max_damaged_share` allows.
        """
        with self._lock:
            own = self._heard_of | self._damaged
        self.hear_of({index: reason for met in dist.gather_objects(own) for index, reason in met.items()})
        self._refuse_too_many()
        return dict(sorted(self._heard_of.items()))

    def hear_of(self, damaged: Mapping[int, str]) -> None:
        """Count and list as damaged what another rank or an earlier start of the run has met, with the reasons."""
        with self._lock:
            self._heard_of |= damaged
            self._met |= damaged.keys()

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, C, S, S] and aspects float32 [B] of int64 indices [B]."""
        if self.is_decoded:
            return self._pixels[indices], self._aspects[indices]
        with ThreadPoolExecutor(max(1, self.options.workers)) as pool:
            pairs = list(pool.map(lambda index: self._or_replaced(index, self._squashed), indices.tolist()))
        pixels = torch.from_numpy(np.stack([image for image, _ in pairs]))
        return pixels, torch.tensor([aspect for _, aspect in pairs], dtype=torch.float32)

    def fetch_views(self, indices: Tensor, draws_VBK: Tensor, *, recipe: ViewRecipe) -> Tensor:
        """Views cut from the full pictures of int64 indices [B], each of which is decoded once.

        Args:
            indices: int64 [B].
            draws_VBK: float64 [V, B, 16], of each view `views.view_draws`.
            recipe: ranges of the views' parameters.

        Returns:
            uint8 [V, B, C, size, size].
        """
        assert not self.is_decoded, "a decoded set has its views made on the device"

        def cut(job: tuple[int, Tensor]) -> Pixels:
            return self._or_replaced(job[0], lambda index: cut_views(self._picture(index), job[1], recipe=recipe))

        with ThreadPoolExecutor(max(1, self.options.workers)) as pool:
            cuts = list(pool.map(cut, zip(indices.tolist(), draws_VBK.transpose(0, 1), strict=True)))
        return torch.from_numpy(np.stack(cuts, axis=1))

    def _decode_all(self, memory_map: Path | None, on_progress: Callable[[int], None] | None) -> tuple[Tensor, Tensor]:
        shape = (len(self), self.options.channels, self.options.side, self.options.side)
        if memory_map is None:
            pixels = np.empty(shape, np.uint8)
        else:
            memory_map.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.lib.format.open_memmap(memory_map, mode="w+", dtype=np.uint8, shape=shape)
        aspects = np.empty(len(self), np.float32)
        failed: list[int] = []

        def place(index: int) -> None:
            try:
                pixels[index], aspects[index] = self._squashed(index)
            except DamagedImage:
                failed.append(index)

        with ThreadPoolExecutor(max(1, self.options.workers)) as pool:
            for done, _ in enumerate(pool.map(place, range(len(self))), start=1):
                if on_progress is not None and (done % 256 == 0 or done == len(self)):
                    on_progress(done)
        for index in failed:
            stand_in = self._stand_in(index)
            pixels[index], aspects[index] = pixels[stand_in], aspects[stand_in]
        return torch.from_numpy(pixels), torch.from_numpy(aspects)

    def _squashed(self, index: int) -> tuple[Pixels, float]:
        """One image as uint8 [C, S, S] and its aspect."""
        image = self._picture(index)
        return resize_square(image, self.options.side), image.shape[2] / image.shape[1]

    def _picture(self, index: int) -> Pixels:
        """One image as uint8 [C, H, W]; a failure is noted before it is raised."""
        options = self.options
        try:
            if index in self._damaged:
                raise DamagedImage(self._damaged[index])
            image = decode(
                self.source.read(index),
                max_pixels=options.max_pixels,
                white_level=options.white_level,
                draft_size=options.side if options.is_draft else None,
            )
        except (DamagedImage, OSError) as error:
            self._note_damage(index, str(error))
            raise DamagedImage(str(error)) from error
        try:
            return to_channels(image, options.channels)
        except UserError as error:
            raise UserError(f"{self.source.names[index]}: {error}") from error

    def _note_damage(self, index: int, reason: str) -> None:
        with self._lock:
            self._damaged[index] = reason
            self._met.add(index)
        self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self._met) > self.options.max_damaged_share * len(self):
            with self._lock:
                met = self._heard_of | self._damaged
            first = "; ".join(f"{self.source.names[i]} ({why})" for i, why in list(met.items())[:5])
            raise UserError(
                f"{self.source.location}: {len(met)} of {len(self)} images could not be read, more than "
                f"data.max_damaged_share={self.options.max_damaged_share} allows: {first}. `ssl-ft index` lists them "
                "all; mend or remove the files, or raise the share"
            )

    def _or_replaced(self, index: int, read: Callable[[int], T]) -> T:
        try:
            return read(index)
        except DamagedImage:
            return read(self._stand_in(index))

    def _stand_in(self, index: int) -> int:
        """The first readable image of a sequence that depends on the seed and the index alone."""
        alike = None if self._classes is None else np.flatnonzero(self._classes == self._classes[index])
        for attempt in range(1000):
            drawn = derive_seed(self.seed, "replacement", index, attempt)
            other = drawn % len(self) if alike is None else int(alike[drawn % len(alike)])
            try:
                if other != index and other not in self._damaged:
                    if not self.is_decoded:
                        self._picture(other)
                    return other
            except DamagedImage:
                continue
        raise UserError(f"{self.source.location}: no readable image was found to replace {self.source.names[index]}")


def channel_statistics(
    store: ImageStore, *, seed: int, num_images: int = 4096
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1], from at most `num_images` evenly spread images.

    A constant channel gets standard deviation 1, so that normalising it gives 0 rather than a division by 0.
    """
    indices = torch.from_numpy(store.source.sample(num_images))
    total, squares, pixels = torch.zeros(1), torch.zeros(1), 0
    for part in indices.split(512):
        images = store.fetch(part)[0].to(torch.float64) / 255
        total = total + images.sum((0, 2, 3))
        squares = squares + images.square().sum((0, 2, 3))
        pixels += images.numel() // images.shape[1]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return _rounded(mean.tolist()), _rounded(std.tolist())


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    # Six digits travel through JSON unchanged and are far below what a pixel's 1/255 resolves.
    return tuple(round(value, 6) for value in values)
