"""Settings of self-training: those of the fine-tuning of teacher and students, and of what lies between."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssl_ft.config.base import Count, short
from ssl_ft.config.combinations import finetune_alone
from ssl_ft.config.parts import DataSettings, ViewSettings
from ssl_ft.config.transfer import FinetuneSettings


class SelftrainSettings(FinetuneSettings):
    pool: Annotated[DataSettings, short("path")] | None = Field(
        None, description="unlabelled images; none: those the encoder was pretrained on. Copies of labelled and test "
        "images are taken out"
    )  # fmt: skip
    teacher: Literal["as_student", "probe"] = Field(
        "as_student", description="the first teacher: trained by strategy like its students, or a probe"
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="least probability of a guess that becomes a label"
    )
    balance: Annotated[float, Field(ge=1)] = Field(
        3.0, description="no class gets more than this many times the labels, true and pseudo, the rarest could have"
    )
    rounds: Count = Field(5, description="most students; it ends once one is no better on val")
    strong_views: Annotated[ViewSettings, short("recipe")] = Field(
        ViewSettings(), description="augmentation of students; views is that of the teacher"
    )
    student_epochs: Count = Field(15, description="most passes of a student over true and pseudo-labels")

    @model_validator(mode="after")
    def _students_train(self) -> Self:
        if self.strategy == "probe":
            raise ValueError(
                "strategy=probe: a student learns by strong views, and a solved probe sees none; use teacher=probe "
                "with strategy=full, or strategy=partial"
            )
        return self

    @model_validator(mode="after")
    def _leaves_finetune_its_own(self) -> Self:
        problems = finetune_alone(self.model_fields_set)
        if problems:
            raise ValueError("\n".join(problems))
        return self
