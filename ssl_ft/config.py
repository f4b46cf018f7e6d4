"""Settings of every stage, typed and strict. Reading them from recipes and the command line is in `recipe.py`.

Only `build/parts.py` and the stages see these classes; below, plain arguments. Each field's description is its line in
`ssl-ft STAGE --help`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ssl_ft.combinations import misfits
from ssl_ft.schedules import parse_duration
from ssl_ft.slurm_settings import SlurmSettings

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Span = tuple[float, float]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _short(key: str) -> BeforeValidator:
    """Let a section be given by its main key alone: `data=photos/` for `data.path=photos/`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _several(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, (list, tuple)) else (value,)


class DataSettings(_Settings):
    path: str = Field(
        "digits",
        description="folder, CSV/Parquet manifest, Parquet images, shards or their URL, .npy/.npz, digits, "
        "torchvision:NAME",
    )
    kind: Literal[
        "auto", "class_folders", "flat", "manifest", "parquet", "array", "shards", "torchvision", "digits"
    ] = Field("auto", description="what path is; auto looks at what is there")
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


class EncoderSettings(_Settings):
    name: str = Field("resnet18", description="any timm architecture")
    stem_stride: Literal[1, 2, 4] | None = Field(
        None, description="stride before a ResNet's or ConvNeXt's first stage; 4 is timm's"
    )
    patch_size: Count | None = Field(None, description="side of a ViT's patches in pixels")
    pretrained: str | None = Field(
        None, description="'timm' for hub weights, or a .safetensors file; all tensors must fit"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the timm constructor")


class ViewSettings(_Settings):
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


class ContrastSettings(_Settings):
    temperature: Positive = Field(0.2, description="temperature of the contrastive loss")
    projector_hidden: Count | None = Field(None, description="hidden size of the projector; none: that of the features")
    projector_out: Count = Field(128, description="size of the embeddings")


class MaskedSettings(_Settings):
    patch: Count | None = Field(
        None, description="side of a hidden patch in pixels; none: a ViT's own, else about an eighth of size"
    )
    hidden_share: Share = Field(0.75, description="share of patches hidden")
    normalise_target: bool = Field(True, description="normalise each target patch by itself")
    decoder_width: Count = Field(128, description="width of the decoder, a multiple of 32 for a ViT")
    decoder_depth: Count = Field(2, description="blocks of a ViT's decoder")


class JointSettings(_Settings):
    form: Literal["plain", "shared"] = Field(
        "plain", description="plain: full views for the contrast; shared: visible patches serve both"
    )
    weight: Positive = Field(1.0, description="weight of the imputation beside the contrast")
    loss: Literal["simclr", "dcl"] = Field("simclr", description="contrastive term")


class OptimSettings(_Settings):
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


class _Run(_Settings):
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="decides every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    threads: Count | None = Field(None, description="CPU threads a rank; none: all cores, shared between ranks")
    out: str | None = Field(None, description="run folder; none: runs/<stage>-<data>-<digits of the settings>")


class PretrainSettings(_Run):
    data: Annotated[DataSettings, _short("path")] = Field(DataSettings(), description="the unlabelled pool")
    encoder: Annotated[EncoderSettings, _short("name")] = Field(EncoderSettings(), description="what is trained")
    objective: Literal["simclr", "dcl", "masked", "joint"] = Field("simclr", description="what it learns from")
    size: Count | None = Field(None, description="side of the input in pixels; none: that of the images, at most 224")
    views: Annotated[ViewSettings, _short("recipe")] = Field(ViewSettings(), description="how views differ from images")
    contrast: ContrastSettings = Field(ContrastSettings(), description="of simclr, dcl and joint")
    masked: MaskedSettings = Field(MaskedSettings(), description="of masked and joint")
    joint: JointSettings = Field(JointSettings(), description="of joint")
    optim: Annotated[OptimSettings, _short("name")] = Field(OptimSettings(), description="how weights move")
    duration: str = Field(
        "20 epochs", description="'20 epochs', '3000 steps' or '8 minutes' (measured at the start, then fixed)"
    )
    batch_size: Count = Field(256, description="images a step over all ranks")
    precision: Literal["float32", "bf16", "float64"] = Field("float32", description="bf16: mixed, losses in float32")
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
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_several)] = Field(
        (), description="where rows go besides: tensorboard, wandb, mlflow"
    )

    @property
    def num_ranks(self) -> int:
        """Ranks these settings ask for; under `torchrun` there may be others."""
        return self.devices if self.slurm is None else self.slurm.nodes * self.slurm.ranks_per_node

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
        if self.objective != "masked" and self.batch_size < 2:
            problems.append(
                f"objective={self.objective} needs a batch_size of 2 or more: with 1 there are no negatives"
            )
        for name in ("eval_every", "save_every"):
            if parse_duration(getattr(self, name))[1] == "minutes":
                problems.append(f"{name} takes epochs or steps, so that a resumed run does the same")
        if problems:
            raise ValueError("\n".join(problems))
        return self


Budget = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1, strict=True)] | Literal["all"]


class ProbeSettings(_Run):
    encoder: str = Field("", description="a pretrain run folder, or the encoder folder in it")
    data: Annotated[DataSettings, _short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    labels: Annotated[tuple[Budget, ...], BeforeValidator(_several)] = Field(
        (1, 2, 5, 10, "all"), description="budgets: labels per class, a share in (0, 1), or all; val is taken from them"
    )
    draws: Count = Field(10, description="random draws of each budget")
    knn: Count = Field(20, description="neighbours of the kNN classifier")
    baselines: bool = Field(True, description="also judge raw pixels and the same encoder untrained")
    batch_size: Count = Field(256, description="images a forward pass")


class FinetuneSettings(_Run):
    encoder: str = Field("", description="a pretrain run folder, or the encoder folder in it")
    data: Annotated[DataSettings, _short("path")] | None = Field(
        None, description="the labelled set; none: the one pretrained on"
    )
    strategy: Literal["full", "scratch"] = Field(
        "full", description="full: all weights move; scratch: the encoder starts fresh"
    )
    labels: Budget = Field("all", description="labels per class, a share in (0, 1), or all; val is taken from them")
    draw: int = Field(0, ge=0, description="which random draw of the budget")
    val_share: Share = Field(0.2, description="share of the budget to stop and choose on")
    epochs: Count = Field(50, description="most passes over the training labels")
    min_steps: Count = Field(300, description="train at least this long, however few the labels")
    patience: Count = Field(10, description="evaluations without a better val score before it stops")
    batch_size: Count = Field(64, description="images a step")
    optim: Annotated[OptimSettings, _short("name")] = Field(
        OptimSettings(rate=3e-3), description="of the head; the encoder's rate is a share of it"
    )
    encoder_rate_share: Positive = Field(
        0.1, description="the encoder's learning rate as a share of the head's (scratch: 1)"
    )
    label_smoothing: Probability = Field(0.0, description="share of each label spread over the classes")
    views: Annotated[ViewSettings, _short("recipe")] = Field(ViewSettings(recipe="gentle"), description="augmentation")
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: mixed")

    @model_validator(mode="after")
    def _of_pretraining_alone(self) -> Self:
        given = [f"optim.{key}" for key in ("accumulate", "ema") if key in self.optim.model_fields_set]
        if given:
            raise ValueError(f"{' and '.join(given)} concern pretraining alone; finetune takes neither, leave it out")
        return self


class RunSettings(_Settings):
    pretrain: PretrainSettings = Field(PretrainSettings(), description="settings of pretrain")
    probe: ProbeSettings = Field(ProbeSettings(), description="settings of probe")
    finetune: FinetuneSettings = Field(
        FinetuneSettings(), description="settings of finetune, run as full and as scratch"
    )
    title: str = Field("ssl_ft", description="title of the report")
    out: str = Field("runs/demo", description="folder of all run folders, report.html and result.json")

    @model_validator(mode="after")
    def _waits_for_pretraining(self) -> Self:
        if self.pretrain.slurm is not None:
            raise ValueError(
                "pretrain.slurm: the stages after it would not wait for the job; send it off with `ssl-ft pretrain`, "
                "then give its run to probe and finetune"
            )
        return self


class ReportSettings(_Settings):
    runs: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="run folders, or folders of them"
    )
    title: str = Field("What the unlabelled images were worth", description="title of the page")
    out: str = Field("report.html", description="the page")


class IndexSettings(_Settings):
    data: Annotated[DataSettings, _short("path")] = Field(DataSettings(), description="the source to look at")
    look: bool = Field(True, description="decode every image: sizes, channels, damage; false counts only")
    duplicates: bool = Field(True, description="look for the same picture twice and for near copies; needs look")
    pack: str | None = Field(None, description="new folder to write the images into, as shards with an index")
    pack_format: Literal["tar", "parquet"] = Field("tar", description="what shards are: tar (webdataset) or Parquet")
    shard_mb: Count = Field(256, description="about how large a shard is")
    out: str | None = Field(None, description="run folder; none: runs/index-<data>-<digits of the settings>")


class BenchSettings(_Settings):
    rows: Annotated[
        tuple[Literal["contrast", "training", "views", "masked", "probe", "order", "gpu"], ...],
        BeforeValidator(_several),
    ] = Field((), description="contrast, training, views, masked, probe, order, gpu; none named: all but gpu")
    gpu: bool = Field(False, description="measure the GPU: the row gpu alone where no other is named")
    repeats: Count = Field(5, description="timed rounds of each comparison")
    threads: Count | None = Field(None, description="CPU threads of both sides; none: all cores")
    data: str | None = Field(None, description="small images for the row training; none: noise")
    photos: str | None = Field(None, description="folder of JPEG photos for the row views; none: noise")
    out: str | None = Field(None, description="JSON file of the rows")


class PredictSettings(_Settings):
    classifier: str = Field("", description="a finetune run folder, or the classifier folder in it")
    images: str = Field("", description="a folder of images or any other source")
    out: str = Field("predictions.csv", description="the CSV: path, label, probability, then one column a class")
    max_damaged_share: Probability = Field(0.01, description="share of unreadable images past which nothing is written")
    batch_size: Count = Field(256, description="images a forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")


Check = Literal[
    "versions", "device", "cpu", "memory", "limits", "disk", "decoders", "data", "views", "precision", "resume",
    "ranks", "network",
]  # fmt: skip


class DoctorSettings(_Settings):
    checks: Annotated[tuple[Check, ...], BeforeValidator(_several)] = Field(
        (), description="what to check; none: everything"
    )
    ranks: Count = Field(2, description="processes to compare with one and measure between; torchrun brings its own")
    memory_mb: Count = Field(2000, description="MiB of memory a rank is to have; pretrain --dry-run estimates it")
    folder: str = Field("runs", description="where runs will be written")
    data: Annotated[DataSettings, _short("path")] | None = Field(None, description="a source to read a few images from")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    out: str | None = Field(None, description="a JSON file for the findings")
