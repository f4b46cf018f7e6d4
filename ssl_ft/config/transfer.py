"""Settings of the stages that use an encoder: probe, finetune, predict, and all of it in one go."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ssl_ft.config.base import Budget, Count, Positive, Probability, Settings, Share, Stage, over, several, short
from ssl_ft.config.parts import AlsoSettings, DataSettings, OptimSettings, SourceSettings, ViewSettings
from ssl_ft.config.pretrain import PretrainSettings
from ssl_ft.config.strategies import (
    READERS,
    AdapterSettings,
    DistanceSettings,
    GradualSettings,
    HeadSettings,
    L2SPSettings,
    LayerDecaySettings,
    LowRankSettings,
    PartialSettings,
    misfits,
)
from ssl_ft.config.targets import ImbalanceSettings, MixSettings, RegressionSettings


class ProbeSettings(Stage):
    encoder: str = Field(
        "", description="a pretrain or finetune run or the model folder in it, timm:NAME, or a .safetensors file"
    )
    source: SourceSettings = Field(SourceSettings(), description="of encoder=timm:NAME and of a .safetensors file")
    data: Annotated[DataSettings, short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    labels: Annotated[tuple[Budget, ...], BeforeValidator(several)] = Field(
        (1, 2, 5, 10, "all"), description="budgets: labels per class, a share in (0, 1), or all; val is taken from them"
    )
    draws: Count = Field(10, description="random draws of each budget")
    knn: Count = Field(20, description="neighbours of the kNN classifier")
    baselines: bool = Field(True, description="also judge raw pixels and the same encoder untrained")
    batch_size: Count = Field(256, description="images a forward pass")


class FinetuneSettings(Stage):
    encoder: str = Field(
        "", description="a pretrain or finetune run or the model folder in it, timm:NAME, or a .safetensors file"
    )
    source: SourceSettings = Field(SourceSettings(), description="of encoder=timm:NAME and of a .safetensors file")
    data: Annotated[DataSettings, short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    also: Annotated[tuple[Annotated[AlsoSettings, short("path")], ...], BeforeValidator(several)] = Field(
        (), description="further labelled sources whose training images are trained on too, outside the budget"
    )
    also_classes: Literal["same", "union"] = Field(
        "same", description="same: those of data alone; union: others are learnt beside, and dropped at the end"
    )
    strategy: Literal[
        "scratch",
        "probe",
        "partial",
        "layer_decay",
        "gradual",
        "probe_then_finetune",
        "full",
        "l2sp",
        "feature_distance",
        "adapter",
        "lora",
        "dora",
        "qlora",
    ] = Field("full", description="which weights move, and how")
    probe: HeadSettings | None = Field(None, description="of probe and probe_then_finetune")
    partial: PartialSettings | None = Field(None, description="of partial")
    layer_decay: LayerDecaySettings | None = Field(None, description="of layer_decay")
    gradual: GradualSettings | None = Field(None, description="of gradual")
    l2sp: L2SPSettings | None = Field(None, description="of l2sp")
    distance: DistanceSettings | None = Field(None, description="of feature_distance")
    adapter: AdapterSettings | None = Field(None, description="of adapter")
    low_rank: LowRankSettings | None = Field(None, description="of lora, dora and qlora")
    batch_norm: Literal["batch", "source"] | None = Field(
        None,
        description="statistics that batch norms of moving layers use while training; none: source for l2sp and "
        "feature_distance, else batch",
    )
    labels: Budget = Field(
        "all",
        description="labels per class (of other tasks: labelled images in all), a share in (0, 1), or all; val is "
        "taken from them",
    )
    draw: int = Field(0, ge=0, description="which random draw of the budget")
    val_share: Share = Field(
        0.2,
        description="share of the budget to stop and choose on; with fewer than 50 images the last weights are kept",
    )
    epochs: Count = Field(50, description="most passes over the training labels")
    min_steps: Count = Field(300, description="train at least this long, however few the labels")
    patience: Count = Field(10, description="evaluations without a better val score before it stops")
    batch_size: Count = Field(64, description="images a step")
    optim: Annotated[OptimSettings, over({"rate": 3e-3}), short("name")] = Field(
        OptimSettings(rate=3e-3), description="of the head; the encoder's rate is a share of it"
    )
    encoder_rate_share: Positive = Field(
        0.1, description="the encoder's learning rate as a share of the head's (scratch: 1)"
    )
    label_smoothing: Probability = Field(0.0, description="share of each label spread over the classes")
    imbalance: ImbalanceSettings = Field(ImbalanceSettings(), description="what is done about rare classes")
    mix: MixSettings = Field(MixSettings(), description="images mixed with one another, targets alike")
    regression: RegressionSettings = Field(RegressionSettings(), description="of data.task=regression")
    tta: Literal["none", "flip", "crops"] = Field(
        "none", description="test score from the mean over views: the image and its mirror image, or ten crops"
    )
    views: Annotated[ViewSettings, over({"recipe": "gentle"}), short("recipe")] = Field(
        ViewSettings(recipe="gentle"), description="augmentation"
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: mixed")

    @model_validator(mode="after")
    def _fits_the_strategy(self) -> Self:
        sections = {name for name in READERS if getattr(self, name) is not None}
        problems = misfits(self.strategy, sections, batch_norm=self.batch_norm, optimizer=self.optim.name)
        given = [f"optim.{key}" for key in ("accumulate", "ema") if key in self.optim.model_fields_set]
        if given:
            problems.append(f"{' and '.join(given)} concern pretraining alone; finetune takes neither, leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class RunSettings(Settings):
    pretrain: PretrainSettings = Field(PretrainSettings(), description="settings of pretrain")
    probe: ProbeSettings = Field(ProbeSettings(), description="settings of probe")
    finetune: FinetuneSettings = Field(
        FinetuneSettings(), description="settings of finetune, run by its strategy and from scratch"
    )
    title: str = Field("ssl_ft", description="title of the report")
    out: str = Field("runs/demo", description="folder of all run folders, report.html and result.json")

    def unread(self, given: Collection[str]) -> list[str]:
        """Those of pretrain."""
        own = [name.removeprefix("pretrain.") for name in given if name.startswith("pretrain.")]
        return self.pretrain.unread(own, prefix="pretrain.")

    @model_validator(mode="after")
    def _is_judged_by_classes(self) -> Self:
        given = {"pretrain": self.pretrain.data, "probe": self.probe.data, "finetune": self.finetune.data}
        others = [f"{stage}.data.task={data.task}" for stage, data in given.items() if data and data.task != "classes"]
        if others:
            raise ValueError(
                f"{others[0]}: run judges by probe, which knows classes alone; call pretrain and finetune one by one"
            )
        return self

    @model_validator(mode="after")
    def _waits_for_pretraining(self) -> Self:
        if self.pretrain.slurm is not None:
            raise ValueError(
                "pretrain.slurm: the stages after it would not wait for the job; send it off with `ssl-ft pretrain`, "
                "then give its run to probe and finetune"
            )
        return self


class PredictSettings(Settings):
    classifier: str = Field(
        "", description="a finetune run folder, the classifier folder in it, or an exported model.onnx or its folder"
    )
    images: str = Field("", description="a folder of images or any other source")
    out: str = Field(
        "predictions.csv",
        description="CSV, or Parquet by its ending: path, label, probability, one column a class; else one a target",
    )
    tta: Literal["none", "flip", "crops"] = Field(
        "none", description="mean over views: the image and its mirror image, or ten crops"
    )
    max_damaged_share: Probability = Field(0.01, description="share of unreadable images past which nothing is written")
    batch_size: Count = Field(256, description="images a forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
