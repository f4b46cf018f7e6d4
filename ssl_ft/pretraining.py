"""Pretraining on given objects: resume, step, watch, keep checkpoints. Built by `build/parts.py`, called by the stage.

The loop is in `loop.py`; what is written at the end is the stage's business.
"""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssl_ft import dist
from ssl_ft.checkpoint import load_checkpoint, save_checkpoint
from ssl_ft.data.batches import batches
from ssl_ft.data.store import ImageStore
from ssl_ft.evaluate.online import Watcher, recalibrated
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder

# Enough to see steps of both sizes where early views are smaller.
_TRIAL_STEPS = 16
# Evaluations, checkpoints and the start take part of the minutes too.
_SHARE_FOR_STEPS = 0.93


@dataclass(frozen=True, eq=False)
class Pretraining:
    """Everything one pretraining needs.

    Attributes:
        objective: what is trained, on its device.
        optimizer: over its parameters.
        average: running average of the encoder, or None.
        store: the pool.
        watcher: measures the encoder now and then.
        plan: how to step.
        batch_size: images a step over all ranks.
        device: where to compute.
        seed: of order, views, masks and dropout.
        workers: decoding threads.
        is_masked_input: the encoder trains on images with holes, so its batch norms need whole ones before use.
    """

    objective: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None
    store: ImageStore
    watcher: Watcher
    plan: LoopPlan
    batch_size: int
    device: torch.device
    seed: int
    workers: int
    is_masked_input: bool

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        average = {} if self.average is None else {"average": self.average}
        return {"objective": self.objective, **average}

    def encoder(self) -> nn.Module:
        """The encoder as it would be handed over now: the average where there is one, batch norms made ready."""
        trained: nn.Module = self.objective.encoder if self.average is None else self.average.module  # type: ignore[assignment]
        if not self.is_masked_input:
            return trained
        return recalibrated(trained, self.watcher.images, self.watcher.contract, batch_size=self.batch_size)


def train(work: Pretraining, run: RunFolder, *, should_stop: Callable[[], bool], track: Callable[..., None]) -> int:
    """Go on from the run's last checkpoint, or start, and train to the plan's end or until asked to stop.

    Returns:
        Steps done in all.
    """
    folder = run.path / "checkpoints"
    if dist.is_main():
        folder.mkdir(exist_ok=True)
    start, best = resume(work, folder / "last.safetensors")
    run.forget_rows_after(start)
    dist.barrier()
    with ProgressLine("step", total=work.plan.num_steps, done=start) as progress:

        def log(step: int, row: dict[str, float]) -> None:
            pace = work.batch_size / row.pop("seconds_per_step")
            run.log({"step": step, "kind": "train", **row, "images_per_second": round(pace, 1)})
            track(step, row)
            progress.update(step, f"loss {row['loss']:.4f}, {pace:.0f} images/s")

        def evaluate(step: int) -> bool:
            nonlocal best
            row = work.watcher(work.encoder())
            run.log({"step": step, "kind": "eval", **row})
            track(step, row)
            value = row.get("knn_accuracy")
            if value is not None and value > best:
                best = value
                save(step, "best")
            return False

        def save(step: int, name: str = "last") -> None:
            if dist.is_main():
                values = {"step": step, "best": best, "num_steps": work.plan.num_steps}
                path = folder / f"{name}.safetensors"
                save_checkpoint(path, modules=work.modules(), optimizer=work.optimizer, values=values)
            dist.barrier()

        stream = batches(
            work.store,
            batch_size=work.batch_size,
            seed=work.seed,
            start_step=start,
            num_steps=work.plan.num_steps,
            workers=work.workers,
        )
        return run_steps(
            work.objective,
            work.optimizer,
            stream,
            plan=work.plan,
            calls=LoopCalls(log, evaluate, save, should_stop),
            device=work.device,
            start_step=start,
            seed=work.seed,
            average=work.average,
        )


def resume(work: Pretraining, path: Path) -> tuple[int, float]:
    """Fill the work from a checkpoint if there is one; gives the steps done and the best kNN accuracy so far."""
    work.objective.train()
    if not path.is_file():
        return 0, -1.0
    values: dict[str, Any] = load_checkpoint(path, modules=work.modules(), optimizer=work.optimizer)
    return int(values["step"]), float(values["best"])


def steps_in(minutes: float, work: Pretraining) -> int:
    """How many steps fit into `minutes`, from a few timed ones that are then undone.

    The number is fixed before training starts, so the run is as repeatable as one given in steps.
    """
    before = copy.deepcopy(work.objective.state_dict())
    plan = replace(work.plan, num_steps=_TRIAL_STEPS, eval_every=0, log_every=10**9, save_every=10**9)
    ends: list[float] = []

    def note_time() -> bool:
        ends.append(time.monotonic())
        return False

    stream = batches(
        work.store,
        batch_size=work.batch_size,
        seed=work.seed,
        start_step=0,
        num_steps=_TRIAL_STEPS,
        workers=work.workers,
    )
    calls = LoopCalls(lambda step, row: None, lambda step: False, lambda step: None, note_time)
    run_steps(
        work.objective.train(), work.optimizer, stream, plan=plan, calls=calls, device=work.device, start_step=0, seed=0
    )
    work.objective.load_state_dict(before)
    work.optimizer.state.clear()
    # The slowest step is left out: the first of a new size prepares its kernels.
    paces = sorted(later - earlier for earlier, later in itertools.pairwise(ends))[:-1]
    pace = sum(paces) / len(paces)
    return int(dist.broadcast_object(max(1, int(_SHARE_FOR_STEPS * minutes * 60 / pace))))
