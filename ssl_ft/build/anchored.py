"""The strategies that hold what moves near the source: `l2sp` its weights, `feature_distance` its features.

Formulas are in `transfer/l2sp.py` and `transfer/feature_distance.py`.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_ft.build.data import open_data, pool_of
from ssl_ft.build.draft import Draft, full_rates
from ssl_ft.build.labels import LabelledImages
from ssl_ft.build.unlabelled_views import unlabelled_views
from ssl_ft.config import DataSettings, DistanceSettings, FinetuneSettings, L2SPSettings
from ssl_ft.data.source import Source
from ssl_ft.transfer.feature_distance import DistancePenalty
from ssl_ft.transfer.l2sp import l2sp, pull
from ssl_ft.transfer.strategy import Prepared, head_names, scaled_groups


def prepare_l2sp(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Everything moves; the encoder is pulled towards the source, the head decays to zero."""
    model, chosen = draft.model, settings.l2sp or L2SPSettings()
    decay = settings.optim.weight_decay if chosen.head is None else chosen.head
    encoder = {name for name, _ in model.named_parameters()} - head_names(model)
    groups = scaled_groups(model, full_rates(settings, model), weight_decay=decay, undecayed=encoder)
    moving = {id(p): p for name, p in model.named_parameters() if name in encoder}
    source = {key: p.detach().clone() for key, p in moving.items()}

    def after_step(optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            own = [p for p in group["params"] if id(p) in moving]
            pull(own, [source[id(p)] for p in own], amount=group["lr"] * chosen.weight)

    def penalty(views: Tensor) -> dict[str, Tensor]:
        # For the log alone: what moves the weights is the step after the optimizer's.
        return {"l2sp": l2sp([p.detach() for p in moving.values()], list(source.values()), strength=chosen.weight)}

    return Prepared(model, groups, merge=lambda: model, penalty=penalty, after_step=after_step)


def prepare_feature_distance(settings: FinetuneSettings, draft: Draft) -> Prepared:
    """Everything moves; features of the training views, and of more images, are held near the source's.

    The steeper a loss, the smaller the steps it allows, but Adam's are as large whatever the loss. So the encoder's
    rate is divided by 1 + λ: at infinity features stay, where they would jump about the source's by a step's length.

    Raises:
        UserError: `distance.on` names images that cannot be read, or of another kind.
    """
    model, chosen = draft.model, settings.distance or DistanceSettings()
    in_head = head_names(model)
    rates = {
        name: rate if name in in_head else rate / (1 + chosen.weight)
        for name, rate in full_rates(settings, model).items()
    }
    groups = scaled_groups(model, rates, weight_decay=settings.optim.weight_decay)
    penalty = DistancePenalty(model, draft.start.encoder, weight=chosen.weight, more=_unlabelled_views(settings, draft))

    def merge() -> nn.Module:
        penalty.release()
        return model

    return Prepared(model, groups, merge=merge, penalty=penalty)


def unlabelled_source(settings: FinetuneSettings, images: LabelledImages) -> Source | None:
    """The images besides the labelled ones whose features are held; None where there are none.

    Raises:
        UserError: they cannot be opened.
    """
    on = None if settings.distance is None else settings.distance.on
    if on is None:
        return None
    if on == "pool":
        return images.source.subset(images.pool)
    data = DataSettings(path=on)
    return pool_of(open_data(data), data)[0]


def _unlabelled_views(settings: FinetuneSettings, draft: Draft) -> Callable[[], Tensor] | None:
    source = unlabelled_source(settings, draft.images)
    if source is None:
        return None
    unlabelled = LabelledImages(source, draft.images.data, np.empty(0, np.int64), draft.images.folder / "unlabelled")
    return unlabelled_views(
        settings, unlabelled, np.arange(len(source)), contract=draft.start.contract, purpose="unlabelled",
        device=draft.device,
    )  # fmt: skip
