"""Sections of finetune's settings that belong to one strategy or two, and the check that the strategy reads them."""

from typing import Annotated, Literal

from pydantic import Field

from ssl_ft.config.base import Count, Settings, Share

NonNegative = Annotated[float, Field(ge=0)]

# Which strategies read which section.
READERS: dict[str, tuple[str, ...]] = {
    "probe": ("probe", "probe_then_finetune"),
    "partial": ("partial",),
    "layer_decay": ("layer_decay",),
    "gradual": ("gradual",),
    "l2sp": ("l2sp",),
    "distance": ("feature_distance",),
}


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
    if batch_norm is not None and strategy == "probe":
        problems.append("batch_norm: no batch norm moves in strategy=probe; leave it out")
    if batch_norm == "source" and strategy == "scratch":
        problems.append("batch_norm=source: strategy=scratch has no source to take statistics from; leave it out")
    if optimizer == "lars" and strategy == "l2sp":
        problems.append(
            "optim=lars with strategy=l2sp: LARS sets the rate of what decays alone, and here the encoder does not; "
            "use adamw, sgd or muon"
        )
    return problems
