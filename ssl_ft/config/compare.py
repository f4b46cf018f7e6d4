"""Settings of the stages that choose between strategies: compare and advise."""

from typing import Annotated, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ssl_ft.config.base import Budget, Count, Probability, Settings, Stage, several, short
from ssl_ft.config.combinations import finetune_alone
from ssl_ft.config.parts import DataSettings, SourceSettings
from ssl_ft.config.transfer import FinetuneSettings

STRATEGY_NAMES: tuple[str, ...] = get_args(FinetuneSettings.model_fields["strategy"].annotation)
# Each cell of a comparison has its own.
_OF_A_CELL = ("encoder", "source", "data", "strategy", "labels", "draw", "seed", "device", "threads", "out")


class ComparedEncoder(Settings):
    encoder: str = Field(description="as finetune's encoder")
    source: SourceSettings = Field(SourceSettings(), description="of timm:NAME and of a .safetensors file")
    name: str | None = Field(None, description="what it is called; none: as its run folder, file or timm name")


class CompareSettings(Stage):
    encoders: Annotated[tuple[str | ComparedEncoder, ...], BeforeValidator(several)] = Field(
        (), description="pretrain or finetune runs, timm:NAME, or {encoder: w.safetensors, source: {name: resnet18}}"
    )
    data: Annotated[DataSettings, short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    strategies: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="strategies of finetune; none: all that are defined for the encoders"
    )
    labels: Annotated[tuple[Budget, ...], BeforeValidator(several)] = Field(
        (2, 10, 50), description="budgets: labels per class, a share in (0, 1), or all; val is taken from them"
    )
    draws: Count = Field(5, description="random draws of each budget; all labels have one")
    seeds: Count = Field(1, description="trainings on each draw")
    baseline: str = Field("scratch", description="strategy the others are held against")
    tolerance: Probability = Field(0.01, description="accuracy that does not matter, in saying who is near the best")
    resamples: Annotated[int, Field(ge=100)] = Field(
        5000, description="bootstrap resamples behind differences; a p-value is at least 2 in so many"
    )
    test_images: Count | None = Field(None, description="score a stratified part of test of about this size; none: all")
    workers: Count | None = Field(None, description="processes here; none: one a GPU, or one a core")
    finetune: FinetuneSettings = Field(
        FinetuneSettings(), description="how each classifier is trained, before its hyper-parameters are chosen"
    )

    @field_validator("strategies")
    @classmethod
    def _are_strategies(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in STRATEGY_NAMES]
        if unknown:
            raise ValueError(f"there is no strategy {unknown[0]!r}; strategies are {', '.join(STRATEGY_NAMES)}")
        if len(set(names)) < len(names):
            raise ValueError("names a strategy twice")
        return names

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        if self.strategies and self.baseline not in self.strategies:
            problems.append(f"baseline={self.baseline} is not among strategies={', '.join(self.strategies)}; add it")
        if self.baseline not in STRATEGY_NAMES:
            problems.append(f"baseline={self.baseline!r} is no strategy; they are {', '.join(STRATEGY_NAMES)}")
        if self.threads not in (None, 1):
            problems.append(
                f"threads={self.threads}: each worker computes on one thread, so that numbers do not depend on how "
                "many work; raise workers instead"
            )
        if len(set(map(str, self.labels))) < len(self.labels):
            problems.append(f"labels={list(self.labels)} names a budget twice")
        if not self.labels:
            problems.append("labels= names no budget")
        given = [f"finetune.{key}" for key in _OF_A_CELL if key in self.finetune.model_fields_set]
        if given:
            problems.append(f"{' and '.join(given)}: compare sets these itself; leave them out")
        problems += finetune_alone(self.finetune.model_fields_set, prefix="finetune.")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class AdviseSettings(Stage):
    encoder: str = Field("", description="a pretrain run folder, or the encoder folder in it")
    data: Annotated[DataSettings, short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    labels: Annotated[tuple[Budget, ...], BeforeValidator(several)] = Field(
        (2, 10, 50, "all"), description="budgets to give advice for"
    )
    compare: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="compare run folders to score the advice on; without encoder= nothing else is done"
    )
