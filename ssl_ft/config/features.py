"""Settings of the stages that hand out features and what follows from them: embed, neighbors, suggest."""

from typing import Annotated, Literal

from pydantic import Field

from ssl_ft.config.base import Count, Probability, Settings, short
from ssl_ft.config.parts import DataSettings

_ENCODER = "a pretrain or finetune run folder, or the encoder or classifier folder in it"


class _Embedding(Settings):
    encoder: str = Field("", description=_ENCODER)
    max_damaged_share: Probability = Field(0.01, description="share of unreadable images past which nothing is written")
    batch_size: Count = Field(256, description="images a forward pass")
    workers: Count = Field(2, description="decoding threads")
    threads: Count | None = Field(None, description="CPU threads; none: all cores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")


class EmbedSettings(_Embedding):
    images: str = Field("", description="a folder of images or any other source")
    normalise: bool = Field(False, description="bring each image's features to length 1")
    out: str = Field("features.parquet", description="the file; .parquet, .csv or .npz")


class NeighborsSettings(_Embedding):
    queries: str = Field("", description="images to find neighbours of: a folder or any other source")
    pool: str = Field("", description="images to look among: a folder or any other source")
    k: Count = Field(8, description="neighbours of each query")
    pages: Annotated[int, Field(ge=0)] = Field(5, description="most contact sheets; the table always has every query")
    rows: Count = Field(10, description="queries a contact sheet")
    out: str = Field(
        "neighbours", description="a folder for neighbours.csv and contact sheets; .csv or .parquet: the table alone"
    )


class SuggestSettings(_Embedding):
    pool: Annotated[DataSettings, short("path")] | None = Field(
        None, description="images to choose from; its test split is left out, and what has a label in it"
    )
    labelled: Annotated[DataSettings, short("path")] | None = Field(
        None, description="images labelled so far; none: those of the pool that have a label, where only some have"
    )
    classifier: str = Field(
        "", description="a finetune run to ask how sure it is; none: a probe on the labelled images"
    )
    n: Count = Field(50, description="images to suggest, the most useful first")
    by: Literal["coverage", "uncertainty", "both"] = Field(
        "both", description="coverage: what stands for many; uncertainty: what the classifier cannot tell; both"
    )
    coverage: Literal["typical", "kcenter"] = Field(
        "typical", description="typical: the densest image of each cluster; kcenter: the farthest from all chosen"
    )
    uncertainty: Literal["margin", "entropy"] = Field(
        "margin", description="margin: between the two likeliest classes; entropy: over all classes"
    )
    memory_mb: Count = Field(
        4000, description="most MiB for the features of all images, which choosing holds three times; past it, refused"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="decides clusters and ties")
    out: str = Field("suggest.csv", description="the table, .csv or .parquet; a contact sheet stands beside it")
