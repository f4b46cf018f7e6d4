"""Settings of adaptation: those of the training on the labelled source, and of what the unlabelled target adds."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ssl_ft.config.base import Positive, short
from ssl_ft.config.combinations import finetune_alone
from ssl_ft.config.parts import DataSettings
from ssl_ft.config.transfer import FinetuneSettings
from ssl_ft.schedules import parse_duration

# Which method reads which setting.
_OF_METHOD = {
    "statistics_images": "batch_norm", "coral_weight": "coral", "critic_weight": "adversarial", "continued": "continue",
}  # fmt: skip


class AdaptSettings(FinetuneSettings):
    target: Annotated[DataSettings, short("path")] | None = Field(
        None, description="images of the other kind; their labels score the result, once, and serve nothing else"
    )
    method: Literal["batch_norm", "coral", "adversarial", "continue"] = Field(
        "batch_norm", description="how the target's unlabelled images are used"
    )
    statistics_images: Annotated[int, Field(ge=2)] = Field(
        2000, description="most target images whose statistics batch norms take"
    )
    coral_weight: Positive = Field(1.0, description="of coral: weight of the distance, features scaled to variance 1")
    critic_weight: Positive = Field(1.0, description="of adversarial: weight of the critic's loss")
    continued: str = Field("5 epochs", description="of continue: duration of the pretraining on the target's images")

    @field_validator("continued")
    @classmethod
    def _is_duration(cls, text: str) -> str:
        parse_duration(text)
        return text

    @model_validator(mode="after")
    def _method_and_strategy(self) -> Self:
        if self.method in ("coral", "adversarial") and self.strategy in ("probe", "l2sp", "feature_distance"):
            why = "solves for a head in one go" if self.strategy == "probe" else "has a penalty of its own"
            raise ValueError(
                f"strategy={self.strategy} {why}, to which method={self.method} cannot be added; use strategy=full"
            )
        return self

    @model_validator(mode="after")
    def _method_reads(self) -> Self:
        problems = [
            f"{key} is of method={method}, and method={self.method} is set; leave it out"
            for key, method in _OF_METHOD.items()
            if getattr(self, key) != type(self).model_fields[key].default and self.method != method
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _leaves_finetune_its_own(self) -> Self:
        problems = finetune_alone(self.model_fields_set)
        if problems:
            raise ValueError("\n".join(problems))
        return self
