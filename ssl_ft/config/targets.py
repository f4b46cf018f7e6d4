"""Settings of training on labels whatever their task: imbalance, mixing, numbers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _beta_is_read(self) -> Self:
        # Settings that were written down name every value: what is no other than the default was not asked for.
        if self.beta != type(self).model_fields["beta"].default and self.weights != "effective":
            raise ValueError(f"beta is of weights=effective, and weights={self.weights} is set; leave it out")
        return self


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

    @model_validator(mode="after")
    def _delta_is_read(self) -> Self:
        if self.delta != type(self).model_fields["delta"].default and self.loss != "huber":
            raise ValueError(f"delta is of loss=huber, and loss={self.loss} is set; leave it out")
        return self
