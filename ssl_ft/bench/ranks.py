"""Do ways of computing a step give the same numbers: FSDP2 and DDP, two ranks and one, cached gradients and whole.

Gloo ranks on this machine. Nothing is timed; what is given is the largest difference. That every objective agrees on
several ranks is what `doctor/ranks.py` checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_ft import dist
from ssl_ft.bench.timing import CannotMeasure, Row, at_most
from ssl_ft.data.batches import batches
from ssl_ft.doctor.subject import build_tiny_optimizer, noise_store, tiny_views
from ssl_ft.launch import run_ranks
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.models.batchnorm import use_global_batch_norm
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.models.heads import Projector
from ssl_ft.objectives.nt_xent import nt_xent
from ssl_ft.objectives.simclr import SimCLR
from ssl_ft.sharded import gathered, shard

_NUM_STEPS, _BATCH_SIZE, _SIDE, _SEED = 6, 16, 16, 3
_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
_CPU = torch.device("cpu")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_EQUAL = 1e-6


@dataclass(frozen=True)
class Way:
    """One way of taking the same steps, as it is told to every rank.

    Attributes:
        path: file in which rank 0 leaves losses and weights.
        precision: float32 or float64.
        is_sharded: weights are dealt out to the ranks (FSDP2).
        num_parts: parts a batch is cut into, with features cached.
    """

    path: str
    precision: str
    is_sharded: bool = False
    num_parts: int = 1


def measure() -> Iterator[Row]:
    """Rows of the largest difference between two ways.

    Raises:
        CannotMeasure: the ranks could not be started.
    """
    for precision in _DTYPES:
        with TemporaryDirectory(prefix="ssl-ft-bench-") as place:
            way = Way(str(Path(place) / "steps.safetensors"), precision)
            one, ddp = steps_of(way, num_ranks=1), steps_of(way, num_ranks=2)
            fsdp = steps_of(replace(way, is_sharded=True), num_ranks=2)
            cached = steps_of(replace(way, num_parts=4), num_ranks=1)
        for name, ours, peer in (
            ("FSDP2 and DDP on 2 ranks", fsdp, ddp),
            ("DDP on 2 ranks and one process", ddp, one),
            ("cached gradients of 4 parts and the whole batch", cached, one),
        ):
            note = f"SimCLR on a small ViT, {_NUM_STEPS} steps of SGD: losses, relative, and weights, absolute"
            yield Row(f"{name}: largest difference in {precision}", largest_difference(ours, peer), None, "",
                      note=note, bar=at_most(_EQUAL, of="ours"))  # fmt: skip


def largest_difference(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> float:
    """Of losses as a share of the peer's, of weights as they are."""
    losses = ((ours["losses"] - peer["losses"]) / peer["losses"]).abs().max()
    return float(torch.maximum(losses, (ours["weights"] - peer["weights"]).abs().max()))


def steps_of(way: Way, *, num_ranks: int) -> dict[str, Tensor]:
    """Losses [steps] and weights [P] in float64 that this way leads to."""
    code = run_ranks(answer, way, num_ranks=num_ranks)
    if code:
        raise CannotMeasure(f"{num_ranks} ranks on this machine ended with exit code {code}")
    return load_file(way.path)


def answer(way: Way) -> int:
    """One rank's part; rank 0 writes what came of it."""
    dist.start_from_environment("cpu")
    dist.use_threads(1)
    dtype = _DTYPES[way.precision]
    objective = use_global_batch_norm(_objective(dtype).to(dtype))
    hollow = shard(objective, objective.encoder, _CPU) if way.is_sharded else None  # type: ignore[arg-type]
    losses: list[float] = []
    calls = LoopCalls(
        log=lambda step, row: losses.append(row["loss"]),
        evaluate=lambda step: False,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    # A rate at which the loss moves in the second digit and rounding is not magnified from step to step.
    plan = LoopPlan(_NUM_STEPS, warmup_steps=1, rate=0.01, accumulate=way.num_parts, log_every=1, save_every=10**9)
    stream = batches(noise_store(2 * _BATCH_SIZE), batch_size=_BATCH_SIZE, seed=_SEED, start_step=0,
                     num_steps=_NUM_STEPS, workers=0)  # fmt: skip
    run_steps(objective.train(), build_tiny_optimizer("sgd", objective), stream, plan=plan, calls=calls, device=_CPU,
              start_step=0, seed=_SEED)  # fmt: skip
    whole = objective if hollow is None else gathered(objective, hollow)
    if dist.is_main():
        weights = torch.cat([value.detach().double().flatten() for value in whole.parameters()])
        save_file({"losses": torch.tensor(losses, dtype=torch.float64), "weights": weights}, way.path)
    dist.barrier()
    dist.stop()
    return 0


def _objective(dtype: torch.dtype) -> SimCLR:
    """Of an encoder without batch norm, whose gradients can be cached; the projector has one."""
    encoder = build_encoder(EncoderSpec("vit_tiny_patch16_224", 3, _SIDE, patch_size=4, args=_VIT), seed=_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        projector = Projector(_VIT["embed_dim"], num_hidden=32, num_out=16)
    return SimCLR(encoder, projector, views=tiny_views(3, dtype, size=_SIDE), loss=nt_xent, temperature=0.2)
