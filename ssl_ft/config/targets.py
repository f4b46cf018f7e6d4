"""Settings of training on labels whatever their task: imbalance, mixing, numbers."""

from typing import Annotated, Literal

from pydantic import Field

from ssl_ft.config.base import Decay, Positive, Settings


class ImbalanceSettings(Settings):
    weights: Literal["none", "inverse", "effective"] = Field(
        "none", description="weight of a class in the loss by its training images n: 1/n, or (1 - beta)/(1 - beta^n)"
    )
    beta: Decay = Field(0.999, description="of effective: 0 weighs all alike, towards 1 it becomes inverse")
    sampling: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: images of each class (label) come equally often, repeats in other views",
    )


class MixSettings(Settings):
    mixup: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="alpha of Beta(alpha, alpha), the share of each image in a blend with another; 0: off"
    )
    cutmix: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="the same of a rectangle pasted from another image; with both on, each image takes one"
    )


class RegressionSettings(Settings):
    loss: Literal["huber", "mse"] = Field("huber", description="on targets standardised by those trained on")
    delta: Positive = Field(1.0, description="of huber: error in standard deviations where square turns into line")
