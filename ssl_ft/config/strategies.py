"""Sections of finetune's settings that belong to one strategy or two, and the check that the strategy reads them."""

from typing import Annotated, Literal

from pydantic import Field

from ssl_ft.config.base import Count, Decay, Positive, Settings, Share

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Which strategies read which section.
READERS: dict[str, tuple[str, ...]] = {
    "probe": ("probe", "probe_then_finetune"),
    "partial": ("partial",),
    "layer_decay": ("layer_decay",),
    "gradual": ("gradual",),
    "l2sp": ("l2sp",),
    "distance": ("feature_distance",),
    "adapter": ("adapter",),
    "low_rank": ("lora", "dora", "qlora"),
}
# Strategies in which the encoder's own layers are all frozen.
KEEP_THE_ENCODER = ("probe", "adapter", "lora", "dora", "qlora")


class HeadSettings(Settings):
    head: Literal["exact", "trained"] = Field(
        "exact", description="exact: solved for, its strength chosen by folds of the budget; trained: in steps"
    )
    share: Share = Field(0.3, description="of probe_then_finetune with head=trained: share of the steps for it alone")


class PartialSettings(Settings):
    layers: Count = Field(1, description="how many stages move, or blocks of a plain transformer, from the head down")


class LayerDecaySettings(Settings):
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="rate of a block as a share of that of the block above it; 1 is full"
    )


class GradualSettings(Settings):
    share: Share = Field(0.5, description="share of the steps after which every layer moves")


class L2SPSettings(Settings):
    weight: NonNegative = Field(10.0, description="lambda of lambda/2 times the squared distance from the source")
    head: NonNegative | None = Field(None, description="decay of the head to zero; none: optim.weight_decay")


class DistanceSettings(Settings):
    weight: NonNegative = Field(
        1.0, description="lambda of the squared distance of features from the source's, as a share of their square"
    )
    on: str | None = Field(
        None,
        description="more images to hold features on, labels unread: pool (all training images) or a source; none: the "
        "labelled views alone",
    )


class AdapterSettings(Settings):
    width: Count = Field(8, description="numbers that an adapter passes on")
    rate_share: Positive = Field(1.0, description="its learning rate as a share of the head's")


class LowRankSettings(Settings):
    rank: Count = Field(8, description="rank of the update of each layer")
    alpha: Positive = Field(16.0, description="the update is scaled by alpha / rank")
    dropout: Decay = Field(0.0, description="share of an update's inputs set to 0 while training")
    rate_share: Positive = Field(1.0, description="their learning rate as a share of the head's")


def misfits(strategy: str, given: set[str], *, batch_norm: str | None, optimizer: str) -> list[str]:
    """What does not fit a strategy, a sentence each.

    Args:
        strategy: its name.
        given: names of the sections that were given.
        batch_norm: whose statistics batch norms use; None where it was not said.
        optimizer: its name.
    """
    problems = [
        f"{section} belongs to strategy={' or '.join(READERS[section])}; strategy={strategy} does not read it, leave "
        "it out"
        for section in READERS
        if section in given and strategy not in READERS[section]
    ]
    if batch_norm is not None and strategy in KEEP_THE_ENCODER:
        problems.append(f"batch_norm: no batch norm moves in strategy={strategy}; leave it out")
    if batch_norm == "source" and strategy == "scratch":
        problems.append("batch_norm=source: strategy=scratch has no source to take statistics from; leave it out")
    if optimizer == "lars" and strategy == "l2sp":
        problems.append(
            "optim=lars with strategy=l2sp: LARS gives each layer a rate of its own, which the pull to the source does "
            "not follow; use adamw, sgd or muon"
        )
    return problems
