"""Batches for training: what a batch is, and the iterator that hands out this rank's part of each global batch.

A batch is a pure function of (images, seed, step); nothing here has a state to save. Views are made later, on the
device, by `ViewMaker`.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_ft import dist
from ssl_ft.data.permutation import Order, batch_indices, permute
from ssl_ft.data.store import ImageStore
from ssl_ft.data.views import ViewRecipe, finish_views, make_views, normalise, view_draws

# On a CPU views are made of so many images at a time that what passes between one operation and the next stays in the
# cache: at 224 pixels a batch of 64 took a third longer in one piece.
_CACHED_BYTES = 5 * 2**20
# Batches decoded ahead of the step that uses them: enough to ride out a slow file, small enough for memory.
_AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """This rank's images of one step: whole ones, or views already cut out of them.

    Attributes:
        images_BCSS: uint8 [B, C, S, S], whole images squashed to a square; None where views are cut.
        aspects_B: float32 [B], width/height before squashing; None where views are cut.
        indices_B: int64 [B], numbers in the pool; one beyond the pool's N images is a repeat, in another view, of the
            image that it leaves over N (`balanced.py`).
        epoch: which pass over the pool.
        cuts_NBCVV: uint8 [number of views, B, C, V, V], placed but neither blurred nor coloured.
    """

    images_BCSS: Tensor | None
    aspects_B: Tensor | None
    indices_B: Tensor
    epoch: int
    cuts_NBCVV: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy does not wait."""
        images, aspects, cuts = (
            None if x is None else x.to(device, non_blocking=True)
            for x in (self.images_BCSS, self.aspects_B, self.cuts_NBCVV)
        )
        return Batch(images, aspects, self.indices_B.to(device, non_blocking=True), self.epoch, cuts)

    def split(self, num_parts: int) -> list["Batch"]:
        """Equal parts in order, for gradient accumulation."""
        indices = self.indices_B.chunk(num_parts)
        none: list[Tensor | None] = [None] * len(indices)
        images = none if self.images_BCSS is None else self.images_BCSS.chunk(num_parts)
        aspects = none if self.aspects_B is None else self.aspects_B.chunk(num_parts)
        cuts = none if self.cuts_NBCVV is None else self.cuts_NBCVV.chunk(num_parts, dim=1)
        parts = zip(images, aspects, indices, cuts, strict=True)
        return [Batch(image, aspect, index, self.epoch, cut) for image, aspect, index, cut in parts]


@dataclass(frozen=True)
class ViewMaker:
    """Turns a batch into normalised views: the recipe, the input contract's mean and std, and the seed, together.

    Attributes:
        recipe: ranges of the views' parameters.
        mean: channel means in [0, 1].
        std: channel standard deviations.
        seed: the run's seed.
        dtype: float32 or float64.
        is_channels_last: lay the result out channels last, which convolutions prefer.
    """

    recipe: ViewRecipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = False

    def pixels(self, batch: Batch, *, view: int) -> Tensor:
        """[B, C, V, V] in [0, 1], before normalising."""
        # Autocast would round the sampling weights to bf16.
        with torch.autocast(batch.indices_B.device.type, enabled=False):
            if batch.cuts_NBCVV is not None:
                return finish_views(
                    batch.cuts_NBCVV[view],
                    batch.indices_B,
                    recipe=self.recipe,
                    seed=self.seed,
                    epoch=batch.epoch,
                    view=view,
                    dtype=self.dtype,
                )
            assert batch.images_BCSS is not None, "a batch has images or cuts"
            assert batch.aspects_B is not None, "images come with their aspects"
            return make_views(
                batch.images_BCSS,
                batch.aspects_B,
                batch.indices_B,
                recipe=self.recipe,
                seed=self.seed,
                epoch=batch.epoch,
                view=view,
                dtype=self.dtype,
            )

    def __call__(self, batch: Batch, *, view: int) -> Tensor:
        """[B, C, V, V] normalised, as the encoder takes it."""
        parts = [batch]
        if batch.indices_B.device.type == "cpu":
            own = len(self.mean) * self.recipe.size**2 * self.dtype.itemsize
            parts = batch.split(max(1, len(batch.indices_B) * own // _CACHED_BYTES))
        layout = torch.channels_last if self.is_channels_last else torch.contiguous_format
        made = (normalise(self.pixels(part, view=view), mean=self.mean, std=self.std) for part in parts)
        if len(parts) == 1:
            return next(made).contiguous(memory_format=layout)
        shape = (len(batch.indices_B), len(self.mean), self.recipe.size, self.recipe.size)
        views = torch.empty(shape, dtype=self.dtype, memory_format=layout)
        for part, place in zip(made, views.split(len(parts[0].indices_B)), strict=True):
            place.copy_(part)
        return views


@dataclass(frozen=True)
class Cutting:
    """Views cut where images are decoded, for sets too large to be decoded once.

    Attributes:
        recipe: where views lie; its colours are left to the device.
        num_views: views of each image.
    """

    recipe: ViewRecipe
    num_views: int


def batches(
    store: ImageStore,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    workers: int,
    order: Order = permute,
    cutting: Cutting | None = None,
) -> Iterator[Batch]:
    """This rank's share of the global batches of steps `start_step` to `num_steps` − 1, decoded ahead of time.

    Args:
        store: the pool.
        batch_size: images of the global batch; a multiple of the number of ranks and at most the pool.
        seed: the run's seed.
        start_step: first step.
        num_steps: one past the last step.
        workers: decoding threads; 0 decodes in step.
        order: in which the images come, anew each epoch.
        cutting: how the workers cut views; None, and for a decoded pool, leaves views to the device altogether.
    """
    share = batch_size // dist.world_size()
    assert share * dist.world_size() == batch_size, "the global batch must divide by the number of ranks"
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)

    def fetch(step: int) -> Batch:
        epoch, indices = batch_indices(step, num_images=len(store), batch_size=batch_size, seed=seed, order=order)
        mine = indices[own]
        images = mine % len(store)
        if cutting is None or store.is_decoded:
            return Batch(*store.fetch(images), mine, epoch)
        draws = [view_draws(mine, seed=seed, epoch=epoch, view=view) for view in range(cutting.num_views)]
        return Batch(None, None, mine, epoch, store.fetch_views(images, torch.stack(draws), recipe=cutting.recipe))

    if store.is_decoded or workers == 0:
        yield from map(fetch, range(start_step, num_steps))
        return
    with ThreadPoolExecutor(1) as ahead:
        pending: deque[Future[Batch]] = deque()
        for step in range(start_step, num_steps):
            while len(pending) < _AHEAD and step + len(pending) < num_steps:
                pending.append(ahead.submit(fetch, step + len(pending)))
            yield pending.popleft().result()
