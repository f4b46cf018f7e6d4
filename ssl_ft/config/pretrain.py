"""Settings of pretraining."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ssl_ft.config.base import Count, Positive, Settings, Share, Stage, several, short
from ssl_ft.config.combinations import misfits
from ssl_ft.config.parts import DataSettings, EncoderSettings, OptimSettings, ViewSettings
from ssl_ft.config.slurm import SlurmSettings
from ssl_ft.schedules import parse_duration

# Which objectives read which section.
READERS: dict[str, tuple[str, ...]] = {
    "contrast": ("simclr", "dcl", "joint"),
    "masked": ("masked", "joint"),
    "joint": ("joint",),
}


class ContrastSettings(Settings):
    temperature: Positive = Field(0.2, description="temperature of the contrastive loss")
    projector_hidden: Count | None = Field(None, description="hidden size of the projector; none: that of the features")
    projector_out: Count = Field(128, description="size of the embeddings")


class MaskedSettings(Settings):
    patch: Count | None = Field(
        None, description="side of a hidden patch in pixels; none: a ViT's own, else about an eighth of size"
    )
    hidden_share: Share = Field(0.75, description="share of patches hidden")
    normalise_target: bool = Field(True, description="normalise each target patch by itself")
    decoder_width: Count = Field(128, description="width of the decoder, a multiple of 32 for a ViT")
    decoder_depth: Count = Field(2, description="blocks of a ViT's decoder")


class JointSettings(Settings):
    form: Literal["plain", "shared"] = Field(
        "plain", description="plain: full views for the contrast; shared: visible patches serve both"
    )
    weight: Positive = Field(1.0, description="weight of the imputation beside the contrast")
    loss: Literal["simclr", "dcl"] = Field("simclr", description="contrastive term")


class PretrainSettings(Stage):
    data: Annotated[DataSettings, short("path")] = Field(DataSettings(), description="the unlabelled pool")
    encoder: Annotated[EncoderSettings, short("name")] = Field(EncoderSettings(), description="what is trained")
    objective: Literal["simclr", "dcl", "masked", "joint", "rotation", "supervised"] = Field(
        "simclr", description="what it learns from; supervised: the labels of the training split"
    )
    size: Count | None = Field(None, description="side of the input in pixels; none: that of the images, at most 224")
    views: Annotated[ViewSettings, short("recipe")] = Field(ViewSettings(), description="how views differ from images")
    contrast: ContrastSettings = Field(ContrastSettings(), description="of simclr, dcl and joint")
    masked: MaskedSettings = Field(MaskedSettings(), description="of masked and joint")
    joint: JointSettings = Field(JointSettings(), description="of joint")
    optim: Annotated[OptimSettings, short("name")] = Field(OptimSettings(), description="how weights move")
    duration: str = Field(
        "20 epochs", description="'20 epochs', '3000 steps' or '8 minutes' (measured at the start, then fixed)"
    )
    batch_size: Count = Field(256, description="images a step over all ranks")
    precision: Literal["float32", "bf16", "float64", "auto"] = Field(
        "float32", description="bf16: mixed, losses in float32; auto: bf16 where hardware has it, else float32"
    )
    channels_last: bool = Field(True, description="memory layout convolutions prefer")
    compile: Literal["none", "default", "cudagraphs"] = Field(
        "none", description="compile the networks where that works; cudagraphs: and replay them as a whole on a GPU"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations of the encoder's blocks twice: less memory, more time, same numbers"
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: weights and optimizer shared out over ranks, for encoders that outgrow a GPU"
    )
    eval_every: str = Field(
        "5 epochs", description="how often kNN, probe and collapse are measured, on training images"
    )
    eval_images: Count = Field(2000, description="training images used for that")
    save_every: str = Field("200 steps", description="how often a checkpoint is written")
    log_every: Count = Field(10, description="steps between rows of metrics.jsonl")
    devices: Count = Field(1, description="processes on this machine; under torchrun leave it at 1")
    slurm: SlurmSettings | None = Field(None, description="the Slurm job to run as; none: run here and now")
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(several)] = Field(
        (), description="where rows go besides: tensorboard, wandb, mlflow"
    )

    @property
    def num_ranks(self) -> int:
        """Ranks these settings ask for; under `torchrun` there may be others."""
        return self.devices if self.slurm is None else self.slurm.nodes * self.slurm.ranks_per_node

    def unread(self, given: Collection[str], *, prefix: str = "") -> list[str]:
        """Settings of sections that the objective does not read; see `Settings.unread`.

        Args:
            given: dotted names.
            prefix: of these settings' names, as the person wrote them.
        """
        sections = {name: name.partition(".")[0] for name in sorted(given)}
        return [
            f"{prefix}{name} belongs to {prefix}objective={' or '.join(READERS[section])}; "
            f"{prefix}objective={self.objective} does not read it, leave it out"
            for name, section in sections.items()
            if section in READERS and self.objective not in READERS[section]
        ]

    @field_validator("duration", "eval_every", "save_every")
    @classmethod
    def _is_duration(cls, text: str) -> str:
        parse_duration(text)
        return text

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = misfits(
            self.objective,
            self.optim.name,
            sharding=self.sharding,
            compile=self.compile,
            has_ema=self.optim.ema is not None,
            num_parts=self.optim.accumulate,
            is_recomputed=self.activation_checkpointing,
        )
        if self.optim.accumulate > 1 and self.objective == "joint":
            problems.append(
                f"optim.accumulate={self.optim.accumulate} with objective=joint: the contrast would see only a part's "
                "negatives, another loss than the full batch's; use 1, or more devices, or simclr, dcl or masked"
            )
        if self.slurm is not None and self.devices > 1:
            problems.append(f"devices={self.devices} with slurm: the job has slurm.nodes x slurm.gpus ranks")
        if self.batch_size % (self.num_ranks * self.optim.accumulate):
            ranks = "devices" if self.slurm is None else "ranks"
            problems.append(
                f"batch_size={self.batch_size} must be a multiple of {ranks} x accumulate = "
                f"{self.num_ranks * self.optim.accumulate}"
            )
        if self.objective in ("simclr", "dcl", "joint") and self.batch_size < 2:
            problems.append(
                f"objective={self.objective} needs a batch_size of 2 or more: with 1 there are no negatives"
            )
        for name in ("eval_every", "save_every"):
            if parse_duration(getattr(self, name))[1] == "minutes":
                problems.append(f"{name} takes epochs or steps, so that a resumed run does the same")
        if problems:
            raise ValueError("\n".join(problems))
        return self
