"""Settings of compress by method=prune: weights or whole channels are taken out."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ssl_ft.config.base import Count, Positive, Probability, Settings, Share, several, short
from ssl_ft.config.parts import DataSettings

# Of a structure that goes as a whole; single weights have none.
_OF_STRUCTURE = ("macs", "latency", "stream", "heads", "round_to")


class PruneSettings(Settings):
    kind: Literal["weights", "units", "channels"] = Field(
        "channels",
        description="weights: single ones become zero, the model stays as large and as slow; units: hidden neurons of "
        "MLPs go; channels: channels of convnets, heads and hidden neurons of ViTs",
    )
    sparsity: Share | None = Field(None, description="share that goes: of the weights, or of each layer's channels")
    macs: Share | None = Field(
        None, description="share of the multiply-accumulates that stays; with no target at all: 0.5"
    )
    latency: Share | None = Field(
        None, description="share of the time an image takes that stays, measured by ONNX Runtime on `threads` (none: 1)"
    )
    scope: Literal["global", "local"] | None = Field(
        None, description="rank all layers together, or each by itself; none: global for weights, local for the others"
    )
    importance: Literal["magnitude", "taylor"] = Field(
        "magnitude", description="what a part counts by; taylor: its part in the loss on training images"
    )
    steps: Count = Field(1, description="times of pruning and training again, much at first and little at last")
    stream: bool | None = Field(
        None, description="also cut residual streams of a convnet; none: where no layer norm runs over them"
    )
    heads: Literal["dims", "whole"] = Field("dims", description="of a ViT: shorten every head, or take whole heads out")
    keep: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="names of modules that stay whole, as the model has them"
    )
    round_to: Count = Field(8, description="what stays of a layer is a multiple of this, where a target can be met so")

    mix: Probability = Field(
        1.0, description="share of the true labels in the loss of training again; the rest is what the model, before "
        "anything went, says of the same views. Of classes alone"
    )  # fmt: skip
    temperature: Positive = Field(4.0, description="where mix is below 1: divides the logits of both; higher is softer")
    pool: Annotated[DataSettings, short("path")] | None = Field(
        None, description="where mix is below 1: unlabelled images, of which the model alone speaks, a batch beside "
        "each labelled one. Copies of labelled and test images are taken out"
    )  # fmt: skip

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        targets = [f"prune.{key}" for key in ("sparsity", "macs", "latency") if getattr(self, key) is not None]
        problems = []
        if len(targets) > 1:
            problems.append(f"{' and '.join(targets)}: each decides how much goes; give one of them")
        if self.kind == "units":
            given = [
                f"prune.{key}" for key, value in (("stream", None), ("heads", "dims")) if getattr(self, key) != value
            ]
            if given:
                problems.append(
                    f"{' and '.join(given)}: of prune.kind=channels, and prune.kind=units is set; leave it out"
                )
        if self.kind == "weights":
            given = [f"prune.{key}" for key in _OF_STRUCTURE if key in self.model_fields_set]
            if given:
                problems.append(
                    f"{' and '.join(given)}: of whole channels or units, and prune.kind=weights is set: single zeros "
                    "cost as much as other weights. Leave it out, or take prune.kind=channels"
                )
            if self.sparsity is None:
                problems.append("prune.kind=weights needs prune.sparsity=, the share of weights that become zero")
        if self.mix == 1:
            problems += [
                f"prune.{key} concerns what the model teaches, and with prune.mix=1 it teaches nothing; set prune.mix "
                "below 1, such as 0.1, or leave it out"
                for key in ("temperature", "pool")
                if key in self.model_fields_set
            ]
        if problems:
            raise ValueError("\n".join(problems))
        return self
