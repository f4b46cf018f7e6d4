"""Settings of the stages that deal with unlabelled images of another kind: shift."""

from typing import Annotated

from pydantic import Field

from ssl_ft.config.base import Count, Stage, short
from ssl_ft.config.parts import DataSettings


class ShiftSettings(Stage):
    encoder: str = Field("", description="a pretrain run folder, or the encoder folder in it")
    data: Annotated[DataSettings, short("path")] | None = Field(None, description="the target; no label is looked at")
    pool: Annotated[DataSettings, short("path")] | None = Field(
        None, description="what the encoder was pretrained on; none: as its run folder tells"
    )
    images: Annotated[int, Field(ge=40)] = Field(1000, description="images looked at of the pool and of the target")
    permutations: Annotated[int, Field(ge=199)] = Field(
        999, description="random splits a distance is held against; p-values go down to 1 in so many"
    )
    batch_size: Count = Field(256, description="images a forward pass")
