"""Settings of the stages that look and measure: report, index, bench, doctor."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ssl_ft.config.base import Count, Settings, several, short
from ssl_ft.config.parts import DataSettings


class ReportSettings(Settings):
    runs: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="run folders, or folders of them"
    )
    title: str = Field("What the unlabelled images were worth", description="title of the page")
    out: str = Field("report.html", description="the page")


class IndexSettings(Settings):
    data: Annotated[DataSettings, short("path")] = Field(DataSettings(), description="the source to look at")
    look: bool = Field(True, description="decode every image: sizes, channels, damage; false counts only")
    duplicates: bool = Field(True, description="look for the same picture twice and for near copies; needs look")
    pack: str | None = Field(None, description="new folder to write the images into, as shards with an index")
    pack_format: Literal["tar", "parquet"] = Field("tar", description="what shards are: tar (webdataset) or Parquet")
    shard_mb: Count = Field(256, description="about how large a shard is")
    out: str | None = Field(None, description="run folder; none: runs/index-<data>-<digits of the settings>")


class BenchSettings(Settings):
    rows: Annotated[
        tuple[Literal["contrast", "training", "views", "masked", "order", "ranks", "shards", "probe", "gpu"], ...],
        BeforeValidator(several),
    ] = Field(
        (), description="contrast, training, views, masked, order, ranks, shards, probe, gpu; none named: all but gpu"
    )
    gpu: bool = Field(False, description="measure the GPU: the row gpu alone where no other is named")
    repeats: Count = Field(5, description="timed rounds of each comparison")
    threads: Count | None = Field(None, description="CPU threads of both sides; none: all cores")
    data: str | None = Field(None, description="small images for the rows training and shards; none: noise")
    photos: str | None = Field(None, description="folder of JPEG photos for the row views; none: noise")
    out: str | None = Field(None, description="JSON file of the rows")


Check = Literal[
    "versions", "device", "cpu", "memory", "limits", "disk", "decoders", "data", "views", "precision", "resume",
    "ranks", "network",
]  # fmt: skip


class DoctorSettings(Settings):
    checks: Annotated[tuple[Check, ...], BeforeValidator(several)] = Field(
        (), description="what to check; none: everything"
    )
    ranks: Count = Field(2, description="processes to compare with one and measure between; torchrun brings its own")
    memory_mb: Count = Field(2000, description="MiB of memory a rank is to have; pretrain --dry-run estimates it")
    folder: str = Field("runs", description="where runs will be written")
    data: Annotated[DataSettings, short("path")] | None = Field(None, description="a source to read a few images from")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    out: str | None = Field(None, description="a JSON file for the findings")
