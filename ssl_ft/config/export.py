"""Settings of export: the model, the formats it is written in, and the images its files are checked on."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ssl_ft.config.base import Count, Positive, Settings, several

Format = Literal["onnx", "torch", "timm", "inductor", "executorch"]


class ExportSettings(Settings):
    model: str = Field("", description="a run that left an encoder or a classifier, or the model folder in it")
    formats: Annotated[tuple[Format, ...], BeforeValidator(several)] = Field(
        ("onnx",), min_length=1, description="files to write: onnx, torch, timm, inductor, executorch"
    )
    preprocess: Literal["outside", "inside"] = Field(
        "outside", description="inside: the files take uint8 images and normalise themselves; timm's never does"
    )
    layout: Literal["nchw", "nhwc"] = Field(
        "nchw", description="order of an image's dimensions; nhwc with preprocess=inside alone"
    )
    images: str = Field("", description="images to check the files on; none: training images of the model's run")
    check_images: Count = Field(256, description="images each file is checked on, evenly spread over those there are")
    tolerance: Positive = Field(
        1e-4, description="largest deviation of any output, over the largest output; what deviates more is not kept"
    )
    threads: Count | None = Field(None, description="CPU threads; none: all cores")
    out: str | None = Field(None, description="run folder; none: runs/export-<model>-<digits of the settings>")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        if self.layout == "nhwc" and self.preprocess == "outside":
            problems.append(
                "layout=nhwc needs preprocess=inside: normalised images are [batch, channels, height, width]"
            )
        if len(set(self.formats)) < len(self.formats):
            problems.append(f"formats names one twice: {', '.join(self.formats)}")
        if problems:
            raise ValueError("\n".join(problems))
        return self
