"""Settings of compress by method=quantize: numbers of 8 bits."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ssl_ft.config.base import Count, Positive, Settings


class QuantizeSettings(Settings):
    kind: Literal["auto", "dynamic", "static", "qat", "weight_only"] = Field(
        "auto",
        description="auto: static for convnets, dynamic for transformers, weight_only for large ones; qat: trained in "
        "8 bits on the labels",
    )
    engine: Literal["auto", "onnxruntime", "pt2e"] = Field(
        "auto", description="what runs it: auto is onnxruntime, a .onnx file; pt2e: torch on x86, a .pt2 file"
    )
    images: Count = Field(512, description="of static and qat: training images that ranges are read from, unlabelled")
    calibration: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="of static by onnxruntime: how a range follows from what was seen"
    )
    rate_share: Positive = Field(
        0.01, description="of qat: learning rate of all weights as a share of finetune.optim.rate"
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        problems = []
        if self.engine == "pt2e" and self.kind in ("dynamic", "weight_only"):
            problems.append(f"engine=pt2e has kind=static and kind=qat; kind={self.kind} is of engine=onnxruntime")
        readers = {
            "images": self.kind in ("auto", "static", "qat"),
            "calibration": self.kind in ("auto", "static") and self.engine != "pt2e",
            "rate_share": self.kind == "qat",
        }
        fields = type(self).model_fields
        given = [key for key, is_read in readers.items() if not is_read and getattr(self, key) != fields[key].default]
        problems += [f"{key}: kind={self.kind} engine={self.engine} does not read it; leave it out" for key in given]
        if problems:
            raise ValueError("\n".join(problems))
        return self
