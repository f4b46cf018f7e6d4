"""Views of unlabelled images beside a training on labels: of a target, of a pool, without an end."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ssl_ft.artifact import InputContract
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.build.parts import label_views
from ssl_ft.config import FinetuneSettings
from ssl_ft.data.batches import Batch, batches
from ssl_ft.seeding import derive_seed

# More steps than any training takes: the stream is left where training ends.
_ENDLESS = 10**9


def unlabelled_views(
    settings: FinetuneSettings,
    images: LabelledImages,
    indices: Indices,
    *,
    contract: InputContract,
    purpose: str,
    device: torch.device,
) -> Callable[[], Tensor]:
    """Gives the views [B, C, V, V] of the next images, as many as a step has labelled ones at most.

    Args:
        settings: of the training on labels: its views, size of a batch and seed.
        images: how they are read; no label of theirs is looked at.
        indices: int64, those that may be used.
        contract: the model's input.
        purpose: tells these draws from others of the same seed.
        device: where the views are made.
    """
    seed = derive_seed(settings.seed, purpose) >> 33  # an int that every seed's type takes
    store, size = images.store(indices, contract, seed=seed), min(settings.batch_size, len(indices))
    stream: Iterator[Batch] = batches(store, batch_size=size, seed=seed, start_step=0, num_steps=_ENDLESS, workers=2)
    views = label_views(settings.views, contract, seed=seed)
    return lambda: views(next(stream).to(device), view=0)
