"""Settings of compress: the model made smaller, how, and what its training may use. Methods have sections."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssl_ft.config.base import Budget, Probability, Stage, short
from ssl_ft.config.combinations import finetune_alone
from ssl_ft.config.distill import DistillSettings
from ssl_ft.config.parts import DataSettings
from ssl_ft.config.prune import PruneSettings
from ssl_ft.config.quantize import QuantizeSettings
from ssl_ft.config.transfer import FinetuneSettings

# Where a method trains, these are decided by compress itself.
_OWN = ("encoder", "source", "data", "strategy", "labels", "draw", "seed", "device", "threads", "out")
# Where an encoder is distilled on unlabelled images, these have nothing to say.
_OF_LABELS = ("labels", "draw", "label_seed", "max_drop", "timing_seconds")
_OF_TRAINING_ON_LABELS = ("val_share", "patience", "label_smoothing", "imbalance", "mix", "batch_norm")


class CompressSettings(Stage):
    model: str = Field(
        "",
        description="what is made smaller: a run that left a classifier, or the model folder in it; of "
        "distill.kind=features an encoder, also timm:NAME",
    )
    method: Literal["distill", "prune", "quantize"] = Field("distill", description="how it is made smaller")
    distill: DistillSettings | None = Field(None, description="of distill")
    prune: PruneSettings | None = Field(None, description="of prune")
    quantize: QuantizeSettings | None = Field(None, description="of quantize")
    data: Annotated[DataSettings, short("path")] | None = Field(
        None, description="the labelled set, of distill.kind=features the images; none: that of the model's run"
    )
    labels: Budget | None = Field(None, description="labels that may be used; none: those of the model's run")
    draw: int | None = Field(None, ge=0, description="which draw of them; none: that of the model's run")
    label_seed: int | None = Field(None, ge=0, description="seed they are drawn by; none: that of the model's run")
    finetune: FinetuneSettings = Field(
        FinetuneSettings(), description="how a student or a pruned model is trained; its strategy does not count"
    )
    max_drop: Probability | None = Field(
        None, description="most accuracy that may be lost against the model; what loses more is not handed over"
    )

    timing_seconds: Annotated[float, Field(ge=0)] = Field(
        20.0, description="most time spent on timing model and file, for each size of batch; 0: no speed and memory"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        sections = [name for name in ("distill", "prune", "quantize") if getattr(self, name) is not None]
        problems = [
            f"{name}: of method={name}, and method={self.method} is set; leave it out"
            for name in sections
            if name != self.method
        ]
        given = [f"finetune.{key}" for key in _OWN if key in self.finetune.model_fields_set]
        if given:
            problems.append(f"{' and '.join(given)}: compress sets these itself; leave them out")
        if self.distill is not None and self.distill.kind == "features":
            given = [key for key in _OF_LABELS if key in self.model_fields_set]
            given += [f"finetune.{key}" for key in _OF_TRAINING_ON_LABELS if key in self.finetune.model_fields_set]
            problems += [
                f"{key} concerns labels or the audit by them, and distill.kind=features has neither; leave it out"
                for key in given
            ]
        problems += self._unread_training()
        problems += finetune_alone(self.finetune.model_fields_set, prefix="finetune.")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unread_training(self) -> list[str]:
        """Settings of a training that quantizing does not do, or does without."""
        if self.method != "quantize":
            return []
        kind, given = (self.quantize or QuantizeSettings()).kind, sorted(self.finetune.model_fields_set)
        if kind != "qat":
            advice = "trains nothing; leave it out, or set quantize.kind=qat"
            return [f"finetune.{key}: quantize.kind={kind} {advice}" for key in given]
        advice = "quantize.kind=qat folds batch norms into convolutions beforehand; leave it out"
        return [f"finetune.{key}: {advice}" for key in given if key == "batch_norm"]
