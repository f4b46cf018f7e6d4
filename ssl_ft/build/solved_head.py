"""The exact linear probe of a label budget as the head of a draft: which images give its features and their scale."""

import copy

import numpy as np
import torch

from ssl_ft.build.draft import Draft, Start
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.config import FinetuneSettings
from ssl_ft.data.permutation import permute
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.evaluate.probe import probe_budget
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.exact_head import FeatureStatistics, bake_probe, feature_statistics
from ssl_ft.transfer.strategy import head_of

# Training images, labelled or not, whose features give the probe's standardisation: a budget's own are too few.
_MOST_REFERENCES = 2048


def solve_head(settings: FinetuneSettings, draft: Draft, indices: Indices) -> None:
    """Make the linear probe of these labelled images the head of the draft's model, its strength chosen by folds."""
    start, images = draft.start, draft.images
    inputs = images.inputs(indices, start.contract)
    features = compute_outputs(
        copy.deepcopy(start.encoder), inputs.pixels, start.contract, device=draft.device, batch_size=256
    )
    known = start.statistics or pool_statistics(start, images, device=draft.device, seed=settings.seed)
    probe = probe_budget(
        features,
        images.labels[inputs.indices],
        num_classes=head_of(draft.model).out_features,
        mean=known.mean,
        scale=known.scale,
        seed=derive_seed(settings.seed, "folds", settings.draw) >> 33,
    )
    bake_probe(head_of(draft.model), probe)


def pool_statistics(start: Start, images: LabelledImages, *, device: torch.device, seed: int) -> FeatureStatistics:
    """What the exact probe standardises by: features of up to 2048 training images, whose labels play no part."""
    places = permute(
        torch.arange(min(_MOST_REFERENCES, len(images.pool))),
        num_items=len(images.pool),
        key=derive_seed(seed, "feature statistics"),
    )
    chosen = np.sort(images.pool[places.numpy()])
    inputs = images.inputs(chosen, start.contract, max_damaged_share=1.0)
    encoder = copy.deepcopy(start.encoder)
    return feature_statistics(compute_outputs(encoder, inputs.pixels, start.contract, device=device, batch_size=256))
