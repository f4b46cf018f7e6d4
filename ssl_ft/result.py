"""`result.json`: what every stage leaves for machines. Its JSON schema is what `ssl-ft schema` prints."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ancestor(_Record):
    """A model that a parent was made from."""

    path: str
    sha256: str
    kind: str


class Parent(_Record):
    """A model this run started from: encoder or classifier of ours, `timm` for hub weights, `weights` for a file."""

    path: str
    sha256: str
    kind: str
    ancestors: tuple[Ancestor, ...] = Field((), description="what it was made from, nearest first, as far as is known")


class DataUsed(_Record):
    """A data set this run read."""

    role: str
    location: str
    kind: str
    num_images: int
    fingerprint: str


class LabelsUsed(_Record):
    """How many labels each role took; val counts in the budget.

    `watch`: looked at for the curves of pretraining. Beside the budget: `also`, of further sources that were trained on
    too, and `earlier`, that the models it started from were trained on.
    """

    train: int = 0
    val: int = 0
    test: int = 0
    watch: int = 0
    also: int = 0
    earlier: int = 0


class Metric(_Record):
    """One number with its 95 % interval; low and high are null where no interval applies."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = Field(description="test images (or images) the number rests on")
    split: str
    labels_per_class: int | float | None = Field(
        None, description="null means all labels; of other tasks than classes, labelled images in all"
    )
    model: str
    target: str | None = Field(None, description="the label or number it concerns; null means classes, or all of them")


class Result(_Record):
    """The end of a stage."""

    schema_version: Literal[1] = 1
    stage: str
    run: str
    parents: list[Parent]
    settings: dict[str, Any]
    data: list[DataUsed]
    labels_used: LabelsUsed
    test_scored: int = Field(description="times any label of the test split was used to score a model")
    seconds: float
    peak_memory_mb: float
    metrics: list[Metric]
