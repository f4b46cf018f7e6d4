"""The strategies of fine-tuning, from settings to a `Prepared`, with their table in plain sight.

A strategy gets a `Draft` and says what moves, how fast and from when. The training itself is in `build/transfer.py`,
formulas in `transfer/`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_ft.build.anchored import prepare_feature_distance, prepare_l2sp
from ssl_ft.build.draft import Draft, full_rates, with_head
from ssl_ft.build.low_rank import prepare_adapter, prepare_low_rank
from ssl_ft.build.solved_head import solve_head
from ssl_ft.config import (
    FinetuneSettings,
    GradualSettings,
    HeadSettings,
    LayerDecaySettings,
    PartialSettings,
)
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import build_encoder
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.depth import layers_of
from ssl_ft.transfer.strategy import Phase, Prepared, head_names, head_of, move_only, scaled_groups

# Strategies that hold everything near the source keep its batch statistics too: with those of each batch, the very same
# weights would compute something else.
_KEEP_STATISTICS = ("l2sp", "feature_distance")


def _scratch(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Fresh weights of the same architecture, all at one rate."""
    encoder = build_encoder(draft.start.spec, seed=derive_seed(settings.seed, "scratch") >> 1)
    model = with_head(encoder, num_classes=head_of(draft.model).out_features, seed=settings.seed)
    model = model.to(draft.device).to(memory_format=torch.channels_last)  # as a start has it
    return _at_rates(settings, model, dict.fromkeys(full_rates(settings, model), 1.0))


def _probe(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Nothing moves but the head, which is solved for, or trained."""
    model = draft.model
    if (settings.probe or HeadSettings()).head == "trained":
        move_only(model, head_names(model))
        return _at_rates(settings, model, dict.fromkeys(head_names(model), 1.0))
    # The strength is chosen by folds, so val labels have nothing to choose here and are fitted on like the others.
    solve_head(settings, draft, np.concatenate([draft.train, draft.val]))
    move_only(model, set())
    fitted = sum(p.numel() for p in head_of(model).parameters())
    return Prepared(model, [], merge=lambda: model, num_fitted=fitted)


def _partial(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """The last k layers move, and the head."""
    model, count = draft.model, (settings.partial or PartialSettings()).layers
    layers = layers_of(model, unit="stage")
    if count > len(layers):
        raise UserError(
            f"partial.layers={count}: {draft.start.spec.name} has {len(layers)} layers, counted as stages, or "
            f"blocks of a plain transformer, with the stem as the first; give 1 to {len(layers)}"
        )
    move_only(model, {name for layer in layers[-count:] for name in layer} | head_names(model))
    return _at_rates(settings, model, full_rates(settings, model))


def _layer_decay(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Everything moves, each block more slowly than the one above it."""
    model, decay = draft.model, (settings.layer_decay or LayerDecaySettings()).decay
    rates, layers = full_rates(settings, model), layers_of(model, unit="block")
    for depth, layer in enumerate(reversed(layers), start=1):
        rates |= {name: rates[name] * decay**depth for name in layer}
    return _at_rates(settings, model, rates)


def _gradual(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """The head moves from the start; layers join in from the top down."""
    model, share = draft.model, (settings.gradual or GradualSettings()).share
    layers = layers_of(model, unit="stage")
    own = dict(model.named_parameters())
    phases = [
        Phase(share * depth / len(layers), tuple(own[name] for name in layer))
        for depth, layer in enumerate(reversed(layers), start=1)
    ]
    return replace(_at_rates(settings, model, full_rates(settings, model)), phases=tuple(phases))


def _probe_then_finetune(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """The head first, solved for or trained; then everything at the encoder's low rate."""
    model, head = draft.model, settings.probe or HeadSettings()
    rates = full_rates(settings, model)
    if head.head == "trained":
        in_head = head_names(model)
        encoder = tuple(p for name, p in model.named_parameters() if name not in in_head)
        return replace(_at_rates(settings, model, rates), phases=(Phase(head.share, encoder),))
    solve_head(settings, draft, draft.train)
    return _at_rates(settings, model, dict.fromkeys(rates, settings.encoder_rate_share))


def _full(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Everything moves: the head at the peak rate, the encoder at its share of it."""
    return _at_rates(settings, draft.model, full_rates(settings, draft.model))


# What each strategy prepares.
STRATEGIES: dict[str, Callable[[FinetuneSettings, Draft], Prepared]] = {
    "scratch": _scratch,
    "probe": _probe,
    "partial": _partial,
    "layer_decay": _layer_decay,
    "gradual": _gradual,
    "probe_then_finetune": _probe_then_finetune,
    "full": _full,
    "l2sp": prepare_l2sp,
    "feature_distance": prepare_feature_distance,
    "adapter": lambda settings, draft: prepare_adapter(settings, draft.model),
    "lora": lambda settings, draft: prepare_low_rank(settings, draft.model, kind="lora"),
    "dora": lambda settings, draft: prepare_low_rank(settings, draft.model, kind="dora"),
    "qlora": lambda settings, draft: prepare_low_rank(settings, draft.model, kind="qlora"),
}


def prepare(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """What the strategy of the settings makes of a draft, which is its own from here on.

    Raises:
        UserError: the encoder does not have what the strategy needs.
    """
    prepared = STRATEGIES[settings.strategy](settings, draft)
    statistics = settings.batch_norm or ("source" if settings.strategy in _KEEP_STATISTICS else "batch")
    if statistics == "batch":
        return prepared
    norms = tuple(module for module in prepared.model.modules() if isinstance(module, _BatchNorm))
    return replace(prepared, frozen=(*prepared.frozen, *norms))


def _at_rates(settings: FinetuneSettings, model: nn.Module, scales: dict[str, float]) -> Prepared:
    groups = scaled_groups(model, scales, weight_decay=settings.optim.weight_decay)
    return Prepared(model, groups, merge=lambda: model)
