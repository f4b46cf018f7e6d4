"""Batches for training: what a batch is, and the iterator that hands out this rank's part of each global batch.

A batch is a pure function of (images, seed, step); nothing here has a state to save. Views are made later, on the
device, by `ViewMaker`.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_ft import dist
from ssl_ft.data.permutation import batch_indices
from ssl_ft.data.store import ImageStore
from ssl_ft.data.views import ViewRecipe, make_views, normalise

# Batches decoded ahead of the step that uses them: enough to ride out a slow file, small enough for memory.
_AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """This rank's images of one step.

    Attributes:
        images_BCSS: uint8 [B, C, S, S], whole images squashed to a square.
        aspects_B: float32 [B], width/height before squashing.
        indices_B: int64 [B], numbers in the pool.
        epoch: which pass over the pool.
        progress: share of all steps done before this one, in [0, 1).
    """

    images_BCSS: Tensor
    aspects_B: Tensor
    indices_B: Tensor
    epoch: int
    progress: float = 0.0

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy does not wait."""
        images, aspects, indices = (
            x.to(device, non_blocking=True) for x in (self.images_BCSS, self.aspects_B, self.indices_B)
        )
        return Batch(images, aspects, indices, self.epoch, self.progress)

    def split(self, num_parts: int) -> list["Batch"]:
        """Equal parts in order, for gradient accumulation."""
        parts = zip(
            self.images_BCSS.chunk(num_parts),
            self.aspects_B.chunk(num_parts),
            self.indices_B.chunk(num_parts),
            strict=True,
        )
        return [Batch(images, aspects, indices, self.epoch, self.progress) for images, aspects, indices in parts]


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
        early_size: side of the views in the first part of training, smaller and so cheaper; None has no such part.
        early_share: share of the steps in that part.
    """

    recipe: ViewRecipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = False
    early_size: int | None = None
    early_share: float = 0.0

    def pixels(self, batch: Batch, *, view: int) -> Tensor:
        """[B, C, V, V] in [0, 1], before normalising."""
        recipe = self.recipe_at(batch.progress)
        # Autocast would round the sampling weights to bf16.
        with torch.autocast(batch.images_BCSS.device.type, enabled=False):
            return make_views(
                batch.images_BCSS,
                batch.aspects_B,
                batch.indices_B,
                recipe=recipe,
                seed=self.seed,
                epoch=batch.epoch,
                view=view,
                dtype=self.dtype,
            )

    def recipe_at(self, progress: float) -> ViewRecipe:
        """The recipe in force once a share `progress` of the steps is done."""
        if self.early_size is None or progress >= self.early_share:
            return self.recipe
        low, high = (sigma * self.early_size / self.recipe.size for sigma in self.recipe.blur_sigma)
        return replace(self.recipe, size=self.early_size, blur_sigma=(low, high))

    def __call__(self, batch: Batch, *, view: int) -> Tensor:
        """[B, C, V, V] normalised, as the encoder takes it."""
        views = normalise(self.pixels(batch, view=view), mean=self.mean, std=self.std)
        return views.contiguous(memory_format=torch.channels_last) if self.is_channels_last else views


def batches(
    store: ImageStore, *, batch_size: int, seed: int, start_step: int, num_steps: int, workers: int
) -> Iterator[Batch]:
    """This rank's share of the global batches of steps `start_step` to `num_steps` − 1, decoded ahead of time.

    Args:
        store: the pool.
        batch_size: images of the global batch; a multiple of the number of ranks and at most the pool.
        seed: the run's seed.
        start_step: first step.
        num_steps: one past the last step.
        workers: decoding threads; 0 decodes in step.
    """
    share = batch_size // dist.world_size()
    assert share * dist.world_size() == batch_size, "the global batch must divide by the number of ranks"
    own = slice(dist.rank() * share, (dist.rank() + 1) * share)

    def fetch(step: int) -> Batch:
        epoch, indices = batch_indices(step, num_images=len(store), batch_size=batch_size, seed=seed)
        images, aspects = store.fetch(indices[own])
        return Batch(images, aspects, indices[own], epoch, step / num_steps)

    if store.is_decoded or workers == 0:
        yield from map(fetch, range(start_step, num_steps))
        return
    with ThreadPoolExecutor(1) as ahead:
        pending: deque[Future[Batch]] = deque()
        for step in range(start_step, num_steps):
            while len(pending) < _AHEAD and step + len(pending) < num_steps:
                pending.append(ahead.submit(fetch, step + len(pending)))
            yield pending.popleft().result()
