"""SimCLR end to end against lightly's recipe, and how near our step is to what the processor can do.

All of it is timed in the same turns: our steps, the bare model's, a matrix product, the peer's.
"""

import copy
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import nn

from ssl_ft.bench.peers import check_lightly, prepare_training
from ssl_ft.bench.pools import images_of
from ssl_ft.bench.timing import CannotMeasure, Row, Work, at_least, compare, time_in_turns
from ssl_ft.bench.workload import (
    Training,
    build_training,
    end_to_end,
    flops_per_image,
    matrix_product,
    model_steps,
    one_batch,
)
from ssl_ft.config import EncoderSettings, OptimSettings, PretrainSettings
from ssl_ft.data.store import ImageStore
from ssl_ft.objectives.simclr import SimCLR
from ssl_ft.processor import faster_precision

_SIZE = 32
_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def measure(
    store: ImageStore,
    *,
    rounds: int,
    workers: int,
    batch_size: int = 128,
    num_steps: int = 2,
    matrix_side: int = 2048,
    encoder: str = "resnet18",
) -> Iterator[Row]:
    """Rows of SimCLR at 32 pixels.

    Args:
        store: the pool, decoded.
        rounds: timed turns.
        workers: processes that make the peer's views; 0 makes them in its step.
        batch_size: images a step.
        num_steps: steps a turn.
        matrix_side: side of the matrices multiplied.
        encoder: timm name of ours; the peer's is always ResNet-18.
    """
    device = torch.device("cpu")
    precision = faster_precision(device)
    settings = PretrainSettings(
        encoder=EncoderSettings(name=encoder, stem_stride=1),
        size=_SIZE,
        batch_size=batch_size,
        optim=OptimSettings(name="sgd"),
        precision=precision,
    )
    ours = build_training(settings, store, device)
    product, product_flops = matrix_product(matrix_side, _DTYPES[precision], device)
    works = {
        "end": end_to_end(ours, num_steps=num_steps),
        "model": model_steps(ours, num_steps=num_steps),
        "product": product,
    }
    peers, missing = _peers(store, precision, batch_size=batch_size, num_steps=num_steps, workers=workers)
    turns = time_in_turns([*works.values(), *peers.values()], rounds=rounds)
    seconds = {name: np.array(column) for name, column in zip([*works, *peers], turns, strict=True)}
    images = num_steps * batch_size
    rates = {name: (images / column).tolist() for name, column in seconds.items()}
    what = f"SimCLR, {encoder} at {_SIZE} px, batch {batch_size}"
    about = f"threads: {torch.get_num_threads()}; ours in {precision}"
    if missing:
        rate = float(np.median(rates["end"]))
        yield Row(f"{what}, end to end", rate, None, "images/s", note=f"{about}; {missing}", bar=at_least(2.0))
    for name in peers:
        # The recipe is what its documentation teaches, in float32; the other row tells how much of it is precision.
        bar = at_least(2.0) if name == "float32" else None
        note = f"{about}, lightly's recipe in {name}, with {workers} processes for views"
        title = f"{what}, end to end: times lightly's recipe in {name}"
        yield compare(title, rates["end"], rates[name], unit="images/s", bar=bar, note=note)
    flops = 2 * images * _model_flops(ours)
    achieved, possible = flops / 1e9 / seconds["model"], product_flops / 1e9 / seconds["product"]
    yield compare(
        f"{what}, model step: share of the {precision} matrix product's rate",
        achieved.tolist(),
        possible.tolist(),
        unit="GFLOP/s",
        bar=at_least(0.85),
        note=f"{flops / images / 1e9:.2f} GFLOP an image in convolutions and linear layers, both views, both ways",
    )
    title, note = f"{what}: end to end as a share of the bare model step", "that has its views ready and no loop"
    yield compare(title, rates["end"], rates["model"], unit="images/s", bar=at_least(0.95), note=note)


def _peers(
    store: ImageStore, precision: str, *, batch_size: int, num_steps: int, workers: int
) -> tuple[dict[str, Work], str]:
    """lightly's recipe by precision: float32 as it is taught, and ours where that is another; or why there is none."""
    try:
        check_lightly()
    except CannotMeasure as reason:
        return {}, str(reason)
    images = images_of(store)
    return {
        name: prepare_training(
            images,
            size=_SIZE,
            batch_size=batch_size,
            num_steps=num_steps,
            workers=workers,
            autocast=None if name == "float32" else _DTYPES[name],
        )
        for name in dict.fromkeys(("float32", precision))
    }, ""


def _model_flops(training: Training) -> float:
    """Operations for one view of one image in encoder and projector, forward and backward."""
    objective = cast(SimCLR, training.objective)
    # A copy, as counting moves batch norms and must not meet a compiled module.
    model = copy.deepcopy(nn.Sequential(objective.encoder, objective.projector))
    return flops_per_image(model, objective.views(one_batch(training), view=0))
