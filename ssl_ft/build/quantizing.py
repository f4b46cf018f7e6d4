"""Quantizes a classifier as settings ask: chooses the kind, reads calibration images, trains where asked, writes.

The rounding itself is in `ssl_ft/compress/quantize_*.py`. No test image is looked at, and labels by training alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.rounded_training import train_rounded
from ssl_ft.compress.quantize_choice import Kind, Weights, check_kind, choose_kind, count_weights, needs_reduced_range
from ssl_ft.compress.quantize_extras import import_torchao, require_quantizers
from ssl_ft.compress.quantize_onnx import quantize_dynamic, quantize_static, quantize_weights
from ssl_ft.compress.quantize_pt2e import (
    calibrated,
    capture,
    converted,
    prepare_rounded,
    write_pt2,
    write_quantized_onnx,
)
from ssl_ft.compress.quantized_graph import settle
from ssl_ft.config import QuantizeSettings
from ssl_ft.errors import UserError
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.runlog import RunFolder
from ssl_ft.seeding import derive_seed

# Calibration images a forward pass.
_BATCH = 16


@dataclass(frozen=True)
class Job:
    """What was decided.

    Attributes:
        kind: of quantization, settled.
        engine: "onnxruntime" or "pt2e".
        weights: where the model's are.
        reduce_range: whether weights take 7 bits.
    """

    kind: Kind
    engine: str
    weights: Weights
    reduce_range: bool


def quantize(work: Work) -> Compressed:
    """The model in 8 bits, as a file to be written; `Compressed.model` is the float32 one it stands for.

    Raises:
        UserError: a package is missing, the kind does not suit the model, or there is no image to calibrate on.
    """
    settings = work.settings.quantize or QuantizeSettings()
    require_quantizers()
    job = decide(settings, work.model, name=work.card.spec.name, note=work.run.note)
    card = replace(work.card, about={"quantized": f"{job.kind}, for {job.engine}"})
    if job.kind in ("dynamic", "weight_only"):
        return Compressed(work.model, card, write=_writer(work, job, None), uses_labels=False)
    pixels = _calibration_images(settings, work)
    if job.engine == "onnxruntime" and job.kind == "static":
        write = _writer(work, job, pixels)
        return Compressed(work.model, card, write=write, uses_labels=False)
    import_torchao()
    channels, size = work.card.contract.channels, work.card.contract.size
    graph = capture(work.model, channels=channels, size=size)
    if job.kind == "static":
        rounded = calibrated(graph, _batches(work, pixels), reduce_range=job.reduce_range)
        return Compressed(work.model, card, write=_graph_writer(work, job, rounded), uses_labels=False)
    model = prepare_rounded(
        graph, _batches(work, pixels), engine=job.engine, is_convnet=job.weights.is_convnet,
        reduce_range=job.reduce_range,
    )  # fmt: skip
    trained = train_rounded(model, work, rate_share=settings.rate_share)
    return Compressed(
        work.model, card, write=_graph_writer(work, job, converted(model)),
        steps=trained.step, num_val=trained.num_val, damages=trained.damages,
    )  # fmt: skip


def decide(settings: QuantizeSettings, model: nn.Module, *, name: str, note: Callable[[str], None]) -> Job:
    """What would be done with a model, told in sentences.

    Args:
        settings: what is asked for.
        model: a classifier.
        name: of its architecture.
        note: takes each sentence.

    Raises:
        UserError: the kind does not suit the model.
    """
    weights = count_weights(model)
    engine = "pt2e" if settings.engine == "pt2e" else "onnxruntime"
    if settings.kind == "auto":
        kind, why = choose_kind(weights, engine=engine)
        note(f"{name} is {why}" if kind != "weight_only" else f"of {name} {why}")
    else:
        kind = settings.kind
    check_kind(weights, kind, name=name)
    reduce_range = kind != "weight_only" and needs_reduced_range()
    numbers = "activations" if engine == "pt2e" and kind == "static" else "weights"
    if reduce_range:
        note(
            f"{numbers} take 7 bits instead of 8: this CPU has no VNNI and saturates sums of full products; quantize "
            "on a CPU that has it for such a CPU"
        )
    elif kind != "weight_only":
        note(f"{numbers} take 8 bits, which this CPU adds exactly; an x86 CPU without VNNI would saturate sums")
    return Job(kind, engine, weights, reduce_range)


def _calibration_images(settings: QuantizeSettings, work: Work) -> NDArray[np.uint8]:
    """uint8 [N, C, S, S], training images drawn by the seed; their labels are not looked at."""
    pool, wanted = work.images.pool, settings.images
    where = work.images.source.location
    if not len(pool):
        raise UserError(
            f"quantize.images={wanted}: {where} has no training images, and ranges are read from some; name a set that "
            "has with data="
        )
    generator = np.random.default_rng(derive_seed(work.settings.seed, "calibration"))
    chosen = np.sort(generator.permutation(pool)[:wanted])
    read = work.images.inputs(chosen, work.card.contract)
    if not len(read.indices):
        raise UserError(f"quantize.images={wanted}: none of the {len(chosen)} images of {where} could be read")
    if len(read.indices) < wanted:
        work.run.note(
            f"ranges are read from {len(read.indices)} training images, all that can be read; quantize.images={wanted} "
            "asks for more"
        )
    return read.pixels


def _batches(work: Work, pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    """float32 [B, C, S, S], as the model takes them."""
    for start in range(0, len(pixels), _BATCH):
        yield work.card.contract.normalise(torch.from_numpy(pixels[start : start + _BATCH]))


def _writer(work: Work, job: Job, pixels: NDArray[np.uint8] | None) -> Callable[[Path], Path]:
    """Writes `model.onnx` by ONNX Runtime's tools into a folder."""
    contract, settings = work.card.contract, work.settings.quantize or QuantizeSettings()

    def write(folder: Path) -> Path:
        target, plain = folder / "model.onnx", folder / ".float.onnx"
        try:
            write_onnx(work.model, plain, channels=contract.channels, size=contract.size, is_annotated=True)
            if job.kind == "dynamic":
                quantize_dynamic(plain, target, reduce_range=job.reduce_range)
            elif job.kind == "weight_only":
                quantize_weights(plain, target)
            else:
                assert pixels is not None, "static quantization has read images"
                quantize_static(
                    plain, target, (batch.numpy() for batch in _batches(work, pixels)),
                    calibration=settings.calibration, is_convnet=job.weights.is_convnet,
                    reduce_range=job.reduce_range,
                )  # fmt: skip
            _tell(work.run, target, plain)
        finally:
            plain.unlink(missing_ok=True)
        return target

    return write


def _graph_writer(work: Work, job: Job, graph: fx.GraphModule) -> Callable[[Path], Path]:
    """Writes a converted graph into a folder, as `model.onnx` or `model.pt2`."""
    contract = work.card.contract

    def write(folder: Path) -> Path:
        if job.engine == "pt2e":
            target = folder / "model.pt2"
            write_pt2(graph, target, channels=contract.channels, size=contract.size)
            work.run.note(
                "model.pt2 needs torch, with torch.ao.quantization.fx._decomposed imported before it is loaded, and is "
                "fast once compiled (torch.compile with torch._inductor.config.freezing=True)"
            )
            return target
        target = folder / "model.onnx"
        write_quantized_onnx(graph, target, channels=contract.channels, size=contract.size)
        work.run.note("model.onnx has the ranges that training followed and the weights that it left, in 8 bits")
        _tell(work.run, target, None)
        return target

    return write


def _tell(run: RunFolder, target: Path, plain: Path | None) -> None:
    """Note what of the file is in 8 bits, and how small that made it."""
    sentence = settle(target).sentence()
    if plain is not None:
        settle(plain)
        sentence += f"; {target.stat().st_size / plain.stat().st_size:.2f} of the float32 file"
    run.note(sentence)
