"""The strategies of fine-tuning, from settings to a `Prepared`, with their table in plain sight.

A strategy gets a `Draft` and says what moves, how fast and from when. The training itself is in `build/transfer.py`,
formulas in `transfer/`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.config import FinetuneSettings
from ssl_ft.data.permutation import permute
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.evaluate.probe import probe_budget
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.exact_head import FeatureStatistics, bake_probe, feature_statistics
from ssl_ft.transfer.strategy import Prepared, head_names, head_of, move_only, scaled_groups

# Training images, labelled or not, whose features give the probe's standardisation: a budget's own are too few.
_MOST_REFERENCES = 2048


@dataclass(frozen=True, eq=False)
class Start:
    """The weights a fine-tuning starts from; nothing below changes them.

    Attributes:
        encoder: timm's module without head.
        spec: its architecture.
        contract: its input.
        statistics: of its features, where they are known already; None has them computed where they are needed.
    """

    encoder: nn.Module
    spec: EncoderSpec
    contract: InputContract
    statistics: FeatureStatistics | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """What a strategy begins with.

    Attributes:
        model: a copy of the encoder with a fresh head, the strategy's own.
        start: where it comes from.
        images: the labelled images.
        train: int64, what may be trained on.
        val: int64, what may be chosen on; empty in a training that chooses nothing any more.
        device: where to compute.
    """

    model: nn.Module
    start: Start
    images: LabelledImages
    train: Indices
    val: Indices
    device: torch.device


def _scratch(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Fresh weights of the same architecture, all at one rate."""
    encoder = build_encoder(draft.start.spec, seed=derive_seed(settings.seed, "scratch") >> 1)
    model = with_head(encoder, num_classes=head_of(draft.model).out_features, seed=settings.seed)
    return _at_rates(settings, model, dict.fromkeys(_names(model), 1.0))


def _full(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Everything moves: the head at the peak rate, the encoder at its share of it."""
    return _at_rates(settings, draft.model, _encoder_at(settings, draft.model))


def _probe(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Nothing moves but the head, which is solved for, or trained."""
    model = draft.model
    if settings.probe.head == "trained":
        move_only(model, head_names(model))
        return _at_rates(settings, model, dict.fromkeys(head_names(model), 1.0))
    # The strength is chosen by folds, so val labels have nothing to choose here and are fitted on like the others.
    solve_head(settings, draft, np.concatenate([draft.train, draft.val]))
    move_only(model, set())
    fitted = sum(p.numel() for p in head_of(model).parameters())
    return Prepared(model, [], merge=lambda: model, num_fitted=fitted)


# What each strategy prepares; `adapter`, `lora` and the like belong here too.
STRATEGIES: dict[str, Callable[[FinetuneSettings, Draft], Prepared]] = {
    "scratch": _scratch,
    "probe": _probe,
    "full": _full,
}


def with_head(encoder: nn.Module, *, num_classes: int, seed: int) -> nn.Module:
    """The encoder itself, with a fresh head that depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier head") >> 1)
        encoder.reset_classifier(num_classes)  # type: ignore[operator]
    return encoder


def solve_head(settings: FinetuneSettings, draft: Draft, indices: Indices) -> None:
    """Make the exact linear probe of these labelled images, as probe stages fit it, the head of the draft's model."""
    images, contract = draft.images, draft.start.contract
    inputs = images.inputs(indices, contract)
    features = _features(draft, inputs.pixels)
    known = draft.start.statistics or pool_statistics(draft.start, images, device=draft.device, seed=settings.seed)
    probe = probe_budget(
        features,
        images.labels[inputs.indices],
        num_classes=head_of(draft.model).out_features,
        mean=known.mean,
        scale=known.scale,
        seed=settings.seed + settings.draw,
    )
    bake_probe(head_of(draft.model), probe)


def pool_statistics(start: Start, images: LabelledImages, *, device: torch.device, seed: int) -> FeatureStatistics:
    """What the exact probe standardises by: features of up to 2048 training images, whose labels play no part."""
    places = permute(
        torch.arange(min(_MOST_REFERENCES, len(images.pool))),
        num_items=len(images.pool),
        key=derive_seed(seed, "feature statistics"),
    )
    inputs = images.inputs(np.sort(images.pool[places.numpy()]), start.contract, max_damaged_share=1.0)
    encoder = copy.deepcopy(start.encoder)
    return feature_statistics(compute_outputs(encoder, inputs.pixels, start.contract, device=device, batch_size=256))


def _features(draft: Draft, pixels: np.ndarray) -> np.ndarray:
    encoder = copy.deepcopy(draft.start.encoder)
    return compute_outputs(encoder, pixels, draft.start.contract, device=draft.device, batch_size=256)


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _encoder_at(settings: FinetuneSettings, model: nn.Module) -> dict[str, float]:
    in_head = head_names(model)
    return {name: 1.0 if name in in_head else settings.encoder_rate_share for name in _names(model)}


def _at_rates(settings: FinetuneSettings, model: nn.Module, scales: dict[str, float]) -> Prepared:
    groups = scaled_groups(model, scales, weight_decay=settings.optim.weight_decay)
    return Prepared(model, groups, merge=lambda: model)
