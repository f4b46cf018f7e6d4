"""Settings of the parts that several stages share: data, encoder, views, optimizer."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ssl_ft.config.base import Count, Decay, Positive, Probability, Settings, Share, Span, several

DataKind = Literal["auto", "class_folders", "flat", "manifest", "parquet", "array", "shards", "torchvision", "digits"]


class DataSettings(Settings):
    path: str = Field(
        "digits",
        description="folder, CSV/Parquet manifest, Parquet images, shards or their URL, .npy/.npz, digits, "
        "torchvision:NAME",
    )
    kind: DataKind = Field("auto", description="what path is; auto looks at what is there")
    task: Literal["classes", "multi_label", "regression"] = Field(
        "classes", description="what the labels are: one class an image, yes or no for each of several, or numbers"
    )
    targets: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="multi_label, regression: the columns (entries of a .npz) to learn; blank values are left out"
    )
    separator: str | None = Field(
        None, description="multi_label: targets names one column of names, such as cat;dog, with this between them"
    )
    test_path: str | None = Field(None, description="a second source of the same kind whose images are the test split")
    train_split: str = Field("train", description="name of the split that is pretrained on and gives training labels")
    val_split: str | None = Field(
        None, description="split finetune chooses on with labels=all; else, and in probe, val comes from the budget"
    )
    test_split: str | None = Field("test", description="split that is scored, once; null draws one from train")
    test_share: Share = Field(
        0.2, description="share of a source without splits that becomes test, stratified and seeded"
    )
    split_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="decides that test part and the limit; keep it over all stages"
    )
    limit: Count | None = Field(None, description="use a seeded random subset of this many training images")
    download: bool = Field(False, description="fetch a torchvision set that is not there")
    channels: Count | None = Field(
        None, description="channels images are brought to; none: the most of 64 evenly spread ones"
    )
    white_level: Count = Field(65535, description="value of 16-bit images that means white")
    max_pixels: Count = Field(89_478_485, description="larger images count as damaged (decompression bombs)")
    max_damaged_share: Probability = Field(0.01, description="share of damaged images past which the run stops")
    cache: Literal["memory", "disk", "none"] = Field(
        "memory", description="where decoded images stay: memory, a memory map in the run folder, or decoded each time"
    )
    cache_mb: Count = Field(1200, description="decoded sets larger than this are decoded each time")
    draft: bool = Field(False, description="let JPEG decode at reduced size where it is at least twice what is needed")
    workers: Count = Field(2, description="decoding threads")
    window_images: Count = Field(
        8192, description="shards: about how many images are mixed at a time; a window of Parquet stays in memory"
    )

    @model_validator(mode="after")
    def _task_and_targets(self) -> Self:
        problems = []
        if self.task == "classes" and self.targets:
            problems.append(
                "targets concerns other tasks: set task=multi_label (columns of 0 and 1) or task=regression (numbers)"
            )
        if self.task != "classes" and not self.targets:
            problems.append(f"task={self.task} needs the columns to learn: targets='[a, b]'")
        if self.separator is not None and self.task != "multi_label":
            problems.append(f"separator={self.separator!r} concerns task=multi_label alone; leave it out")
        if self.separator == "":
            problems.append("separator must be a character, such as ';'")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class AlsoSettings(Settings):
    path: str = Field(description="as data.path")
    kind: DataKind = Field("auto", description="as data.kind")
    train_split: str = Field("train", description="as data.train_split")
    test_split: str | None = Field("test", description="as data.test_split: its images stay out")
    download: bool = Field(False, description="as data.download")


class EncoderSettings(Settings):
    name: str = Field("resnet18", description="any timm architecture")
    stem_stride: Literal[1, 2, 4] | None = Field(
        None, description="stride before a ResNet's or ConvNeXt's first stage; 4 is timm's"
    )
    patch_size: Count | None = Field(None, description="side of a ViT's patches in pixels")
    pretrained: str | None = Field(
        None, description="'timm' for hub weights, a pretrain run, or a .safetensors file; all tensors must fit"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the timm constructor")


class SourceSettings(Settings):
    name: str | None = Field(None, description="architecture of a .safetensors file: any timm name")
    size: Count | None = Field(None, description="side of the input in pixels; none: that of timm's weights")
    channels: Count = Field(3, description="channels of the input, to which images are brought")
    stem_stride: Literal[1, 2, 4] | None = Field(
        None, description="stride before a ResNet's or ConvNeXt's first stage; 4 is timm's"
    )
    patch_size: Count | None = Field(None, description="side of a ViT's patches in pixels")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the timm constructor")
    mean: tuple[float, ...] | None = Field(
        None, description="of each channel in [0, 1]; none: timm's for 3 channels, else measured on training images"
    )
    std: tuple[Positive, ...] | None = Field(None, description="of each channel; goes with mean")

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together; give both, or neither")
        for name in ("mean", "std"):
            scale = getattr(self, name)
            if scale is not None and len(scale) != self.channels:
                raise ValueError(f"{name} has {len(scale)} values for channels={self.channels}; give one a channel")
        return self


class ViewSettings(Settings):
    recipe: Literal["photos", "small_photos", "grey", "aerial", "gentle"] | None = Field(
        None, description="named set of ranges; none: small_photos or photos by size, grey for one channel"
    )
    size: Count | None = Field(
        None, description="side of the views in pixels; none: that of the input. Smaller is cheaper; convnets only"
    )
    scale: Span | None = Field(None, description="smallest and largest share of the area a crop covers")
    ratio: Span | None = Field(None, description="smallest and largest width/height of a crop")
    horizontal_flip: Probability | None = Field(None, description="probability of a left-right flip")
    vertical_flip: Probability | None = Field(None, description="probability of an upside-down flip")
    quarter_turn: Probability | None = Field(None, description="probability of a turn by 90 degrees")
    jitter: Probability | None = Field(None, description="probability that colours change")
    brightness: Probability | None = Field(None, description="largest change of brightness")
    contrast: Probability | None = Field(None, description="largest change of contrast")
    saturation: Probability | None = Field(None, description="largest change of saturation")
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = Field(None, description="largest turn of hue, in circles")
    grey: Probability | None = Field(None, description="probability of dropping colour")
    blur: Probability | None = Field(None, description="probability of a blur")
    blur_sigma: Span | None = Field(None, description="smallest and largest sigma in pixels")

    @field_validator("scale", "ratio", "blur_sigma")
    @classmethod
    def _rising(cls, span: Span | None) -> Span | None:
        if span is not None and not 0 < span[0] <= span[1]:
            raise ValueError("must be two positive numbers, the smaller first")
        return span

    @field_validator("scale")
    @classmethod
    def _share_of_area(cls, span: Span | None) -> Span | None:
        if span is not None and span[1] > 1:
            raise ValueError("a crop covers at most 1 of the area")
        return span


class OptimSettings(Settings):
    name: Literal["adamw", "sgd", "lars", "muon"] = Field("adamw", description="optimizer")
    rate: Positive = Field(1e-3, description="peak learning rate before the rule")
    rule: Literal["linear", "sqrt", "none"] = Field(
        "none", description="rate times batch/256, times root of batch, or as it is"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.05, description="on matrices and filters, never on norms and biases"
    )
    momentum: Probability = Field(0.9, description="of SGD, LARS and Muon")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="of AdamW, and of what Muon leaves to it")
    warmup: Probability = Field(0.1, description="share of the steps with rising learning rate")
    final_share: Probability = Field(0.0, description="share of the peak rate left at the end")
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient")
    accumulate: Count = Field(
        1,
        description="parts a batch is cut into to save memory; simclr and dcl cache features, for encoders without "
        "batch norm",
    )
    ema: Share | None = Field(None, description="decay of a running average of the encoder, which is then the one kept")
