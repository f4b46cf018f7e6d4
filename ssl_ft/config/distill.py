"""Settings of compress by method=distill: a student learns from the model."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ssl_ft.config.base import Count, Positive, Probability, Settings, short
from ssl_ft.config.parts import DataSettings

# Which kinds each setting concerns, where it is not all of them.
_KINDS = {
    "temperature": ("soft", "self"),
    "mix": ("soft", "hard", "self"),
    "pool": ("soft", "hard"),
    "baseline": ("soft", "hard", "self"),
    "teacher": ("self",),
    "depth_weight": ("self",),
    "loss": ("features",),
}
# Of kind=self the architecture is the model's.
_OF_ANOTHER = ("student", "size", "stem_stride", "patch_size", "args")


class DistillSettings(Settings):
    kind: Literal["soft", "hard", "self", "features"] = Field(
        "soft",
        description="what is learnt from the model: its probabilities, its guesses, either by its own architecture "
        "anew, or its encoder's features of unlabelled images",
    )
    student: str | None = Field(
        None, description="any timm architecture; none: that of encoder, of kind=self the model's, else resnet10t"
    )
    encoder: str | None = Field(
        None, description="weights the student starts from, as finetune's encoder; none: fresh ones"
    )
    size: Count | None = Field(None, description="side of the student's input in pixels; none: that of the model")
    stem_stride: Literal[1, 2, 4] | None = Field(
        None, description="as encoder.stem_stride; none: the model's, where the student has one"
    )
    patch_size: Count | None = Field(None, description="as encoder.patch_size; none: the model's, where both are ViTs")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the timm constructor")
    temperature: Positive = Field(4.0, description="of soft and self: divides the logits of both; higher is softer")
    mix: Probability = Field(0.1, description="share of the true labels in the loss; the rest is the teacher's")
    pool: Annotated[DataSettings, short("path")] | None = Field(
        None, description="unlabelled images, of which the teacher alone speaks, a batch beside each labelled one. "
        "Copies of labelled and test images are taken out"
    )  # fmt: skip
    baseline: bool = Field(True, description="also train the very same student without a teacher, to be told apart")
    teacher: Literal["model", "depth", "both"] = Field(
        "model", description="of self: the model, the student's own last layer for those before it, or both"
    )
    depth_weight: Positive = Field(1.0, description="of self: weight of the mean loss of the earlier layers' heads")
    loss: Literal["cosine", "squared"] = Field(
        "cosine", description="of features: 1 - cosine, or the squared distance over the features' own spread"
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        given = self.model_fields_set
        problems = [
            f"{key} concerns kind={' and kind='.join(kinds)}; kind={self.kind} is set, leave it out"
            for key, kinds in _KINDS.items()
            if key in given and self.kind not in kinds
        ]
        if self.kind == "self":
            problems += [f"{key}: kind=self has the model's own architecture; leave it out" for key in _OF_ANOTHER
                         if key in given]  # fmt: skip
            if self.teacher == "model" and "depth_weight" in given:
                problems.append("depth_weight concerns teacher=depth and teacher=both; leave it out")
        if self.encoder is not None and not self.encoder.startswith("timm:") and self.encoder[-12:] != ".safetensors":
            problems += [f"{key}: a run's encoder says itself how it is built; leave it out" for key in _OF_ANOTHER[1:]
                         if key in given and self.kind != "self"]  # fmt: skip
        if problems:
            raise ValueError("\n".join(problems))
        return self
