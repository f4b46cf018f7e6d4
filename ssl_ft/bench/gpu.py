"""What a GPU reaches: images a second of SimCLR, whether it waits for the loader, use of its peak by a masked ViT, and
the fused contrastive loss beside torch's operations.

Times are those of the device, taken by events. The figures are our own alone; there is no peer here.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ssl_ft.bench.contrast import time_kernel
from ssl_ft.bench.pools import open_pool
from ssl_ft.bench.timing import CannotMeasure, Row, at_least, compare, stopwatch_for, time_in_turns
from ssl_ft.bench.workload import (
    Training,
    build_training,
    end_to_end,
    fed_steps,
    flops_per_image,
    matrix_product,
    mixed,
    one_batch,
)
from ssl_ft.config import EncoderSettings, PretrainSettings
from ssl_ft.data.store import ImageStore
from ssl_ft.objectives.masked import Masked

# Images a second of two-view training at 224 px, batch 256, bf16.
_RATES = {"vit_small_patch16_224": 3000.0, "resnet50": 1300.0}
# Dense bf16 peaks in FLOP/s from the vendor's data sheets; the first part of the name that fits counts.
_PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}
_WARM_UP = 2
# Images whose two views are contrasted: 2N = 8,192 and 32,768.
_CONTRAST_SIZES = (4096, 16384)


@dataclass(frozen=True)
class Load:
    """How much a turn has to do; smaller in tests.

    Attributes:
        batch_size: images a step.
        size: side of the input.
        num_steps: steps a turn.
        num_images: of the pool.
        matrix_side: side of the matrices multiplied.
    """

    batch_size: int = 256
    size: int = 224
    num_steps: int = 8
    num_images: int = 1024
    matrix_side: int = 8192


def find_device() -> torch.device:
    """The GPU.

    Raises:
        CannotMeasure: there is none.
    """
    if not torch.cuda.is_available():
        raise CannotMeasure("torch sees no CUDA device here; the rows of a GPU are measured where there is one")
    return torch.device("cuda", torch.cuda.current_device())


def measure(
    device: torch.device,
    *,
    rounds: int,
    load: Load = Load(),
    contrasted: Sequence[str] = tuple(_RATES),
    masked: str = "vit_base_patch16_224",
    contrast_sizes: Sequence[int] = _CONTRAST_SIZES,
) -> Iterator[Row]:
    """Rows of each encoder.

    Args:
        device: where to compute.
        rounds: timed turns.
        load: how much a turn has to do.
        contrasted: timm names of encoders trained by SimCLR.
        masked: timm name of a ViT trained by masked imputation.
        contrast_sizes: images in a batch of the contrastive loss.
    """
    store = open_pool(None, size=load.size, count=load.num_images)
    for name in contrasted:
        yield from _contrasted(name, store, device, rounds=rounds, load=load)
    yield _masked(masked, store, device, rounds=rounds, load=load)
    for count in contrast_sizes:
        for dtype in (torch.bfloat16, torch.float32):
            yield time_kernel(count, dtype, device, rounds=rounds)


def _contrasted(name: str, store: ImageStore, device: torch.device, *, rounds: int, load: Load) -> Iterator[Row]:
    encoder = EncoderSettings(name=name)
    settings = PretrainSettings(encoder=encoder, size=load.size, batch_size=load.batch_size, precision="bf16")
    training = build_training(settings, store, device)
    works = [end_to_end(training, num_steps=load.num_steps), fed_steps(training, num_steps=load.num_steps)]
    seconds = time_in_turns(works, rounds=rounds, warm_up=_WARM_UP, stopwatch=stopwatch_for(device))
    end, fed = ([load.num_steps * load.batch_size / value for value in column] for column in seconds)
    what = f"SimCLR, {name} at {load.size} px, batch {load.batch_size}, bf16"
    note = f"{_device_name(device)}; {min(end):.0f} to {max(end):.0f} over {rounds} turns; each image makes two views"
    bar = at_least(_RATES[name], of="ours") if name in _RATES else None
    yield Row(f"{what}, end to end", float(np.median(end)), None, "images/s", note=note, bar=bar)
    yield compare(
        f"{what}: share of the rate with a batch already on the device",
        end,
        fed,
        unit="images/s",
        bar=at_least(0.97),
        note="1 less this share is the time the GPU waits for the loader; pool decoded in memory",
    )


def _masked(name: str, store: ImageStore, device: torch.device, *, rounds: int, load: Load) -> Row:
    settings = PretrainSettings(
        objective="masked",
        encoder=EncoderSettings(name=name),
        size=load.size,
        batch_size=load.batch_size,
        precision="bf16",
    )
    training = build_training(settings, store, device)
    product, product_flops = matrix_product(load.matrix_side, torch.bfloat16, device, repeats=10)
    works = [end_to_end(training, num_steps=load.num_steps), product]
    seconds = time_in_turns(works, rounds=rounds, warm_up=_WARM_UP, stopwatch=stopwatch_for(device))
    images = load.num_steps * load.batch_size
    flops = images * _imputer_flops(training)
    ours = [flops / 1e12 / value for value in seconds[0]]
    measured = [product_flops / 1e12 / value for value in seconds[1]]
    peak = next((value for part, value in _PEAKS.items() if part in _device_name(device)), None)
    of = "the matrix product's rate, as the peak of this device is not known here" if peak is None else "the peak"
    share = float(np.median(np.array(ours) / np.array(measured)))
    rate = images / float(np.median(seconds[0]))
    return compare(
        f"masked {name} at {load.size} px, batch {load.batch_size}, bf16, end to end: share of {of}",
        ours,
        measured if peak is None else [peak / 1e12] * rounds,
        unit="TFLOP/s",
        bar=at_least(0.40),
        note=f"{_device_name(device)}; {rate:.0f} images/s; {share:.0%} of a matrix product's rate in the same turns",
    )


def _imputer_flops(training: Training) -> float:
    """Operations for one image in encoder and decoder, forward and backward."""
    masked, batch = cast(Masked, training.objective), one_batch(training)
    imputer, images, mask = copy.deepcopy(masked.imputer), masked.views(batch, view=0), masked.mask(batch, view=0)

    def forward(few: Tensor) -> Tensor:
        with mixed(training):
            prediction: Tensor = imputer(few, mask[: len(few)])[0]
            return prediction

    return flops_per_image(forward, images)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
