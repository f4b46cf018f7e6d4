"""Pretraining on given objects: resume, step, watch, keep checkpoints. Built by `build/pretraining.py`.

The loop is in `loop.py`; what is written at the end is the stage's business.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssl_ft import dist
from ssl_ft.checkpoint import load_checkpoint, save_checkpoint
from ssl_ft.data.batches import Batch, Cutting, batches
from ssl_ft.data.permutation import Order, permute
from ssl_ft.data.store import ImageStore
from ssl_ft.evaluate.online import Watcher, recalibrated
from ssl_ft.freed import give_back
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder
from ssl_ft.sharded import gathered
from ssl_ft.sharded_checkpoint import ShardWriter, last_files, load_shards

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
        order: in which images come.
        cutting: how workers cut views of a pool that is not decoded once; None leaves views to the device.
        hollow: the objective without weights, for `sharded.gathered`, where they are shared out over ranks; else None.
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
    order: Order = permute
    cutting: Cutting | None = None
    hollow: nn.Module | None = None

    def stream(self, *, start_step: int, num_steps: int) -> Iterator[Batch]:
        """This rank's batches of steps `start_step` to `num_steps` − 1."""
        return batches(
            self.store,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start_step,
            num_steps=num_steps,
            workers=self.workers,
            order=self.order,
            cutting=self.cutting,
        )

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        average = {} if self.average is None else {"average": self.average}
        return {"objective": self.objective, **average}

    def encoder(self) -> nn.Module:
        """A copy of the encoder as it would be handed over now: the average where there is one, batch norms made ready.

        Every rank must call it, and gets the whole.
        """
        trained: nn.Module = self.objective.encoder if self.average is None else self.average.module  # type: ignore[assignment]
        if self.hollow is not None:
            trained = gathered(trained, self.hollow.encoder)  # type: ignore[arg-type]
        if not self.is_masked_input:
            return copy.deepcopy(trained) if self.hollow is None else trained
        return recalibrated(trained, self.watcher.images, self.watcher.contract, batch_size=self.batch_size)


def train(work: Pretraining, run: RunFolder, *, should_stop: Callable[[], bool], track: Callable[..., None]) -> int:
    """Go on from the run's last checkpoint, or start, and train to the plan's end or until asked to stop.

    Returns:
        Steps done in all.
    """
    folder = run.path / "checkpoints"
    if dist.is_main():
        folder.mkdir(exist_ok=True)
    start, best = resume(work, folder)
    writer = None if work.hollow is None else ShardWriter(folder)
    run.forget_rows_after(start)
    give_back()
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
            give_back()
            run.log({"step": step, "kind": "eval", **row})
            track(step, row)
            value = row.get("knn_accuracy")
            if value is not None and value > best:
                best = value
                save(step, "best")
            return False

        def save(step: int, name: str = "last") -> None:
            # What one rank has met counts for all, and is listed at the end though a resumed run may not meet it again.
            damaged = work.store.share_damages()
            values = {"step": step, "best": best, "num_steps": work.plan.num_steps, "damaged": damaged}
            if writer is not None:
                writer.save(name, step, modules=work.modules(), optimizer=work.optimizer, values=values)
                return
            if dist.is_main():
                path = folder / f"{name}.safetensors"
                save_checkpoint(path, modules=work.modules(), optimizer=work.optimizer, values=values)
            dist.barrier()

        done = run_steps(
            work.objective,
            work.optimizer,
            work.stream(start_step=start, num_steps=work.plan.num_steps),
            plan=work.plan,
            calls=LoopCalls(log, evaluate, save, should_stop),
            device=work.device,
            start_step=start,
            seed=work.seed,
            average=work.average,
        )
    if writer is not None:
        writer.wait()
        dist.barrier()
    return done


def resume(work: Pretraining, folder: Path) -> tuple[int, float]:
    """Fill the work from the folder's last checkpoint if it has one; gives steps done and best kNN accuracy so far."""
    work.objective.train()
    files = last_files(folder)
    if not files:
        return 0, -1.0
    modules, values = work.modules(), dict[str, Any]()
    if work.hollow is None and files == [folder / "last.safetensors"]:
        values = load_checkpoint(files[0], modules=modules, optimizer=work.optimizer)
    else:
        values = load_shards(files, modules=modules, optimizer=work.optimizer)
    # Checkpoints from before damage was kept in them have none; JSON made texts of the numbers.
    work.store.hear_of({int(index): reason for index, reason in values.get("damaged", {}).items()})
    return int(values["step"]), float(values["best"])


def finished(work: Pretraining, folder: Path) -> Pretraining:
    """The work as the folder's last checkpoint has it, all weights whole on every rank; all must call it."""
    resume(work, folder)
    if work.hollow is None:
        return work
    return replace(work, objective=gathered(work.objective, work.hollow), hollow=None)


def steps_in(minutes: float, work: Pretraining) -> int:
    """How many steps fit into `minutes`, from a few timed ones that are then undone.

    The number is fixed before training starts, so the run is as repeatable as one given in steps. All ranks take the
    main one's.
    """
    before = {key: value.clone() for key, value in work.objective.state_dict().items()}
    plan = replace(work.plan, num_steps=_TRIAL_STEPS, eval_every=0, log_every=10**9, save_every=10**9)
    starts: list[float] = []

    def note_time(step: int) -> None:
        # A GPU is asked to do a step long before it has done it.
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)
        starts.append(time.monotonic())

    stream = work.stream(start_step=0, num_steps=_TRIAL_STEPS)
    # By `begin`, which every step calls: on several ranks `should_stop` is asked only now and then.
    calls = LoopCalls(lambda step, row: None, lambda step: False, lambda step: None, lambda: False, begin=note_time)
    run_steps(
        work.objective.train(), work.optimizer, stream, plan=plan, calls=calls, device=work.device, start_step=0, seed=0
    )
    note_time(_TRIAL_STEPS)
    work.objective.load_state_dict(before)
    work.optimizer.state.clear()
    # The first step is left out, for it prepares kernels and memory, and so is the slowest of the others.
    paces = sorted(later - earlier for earlier, later in itertools.pairwise(starts[1:]))[:-1]
    pace = sum(paces) / len(paces)
    return int(dist.broadcast_object(max(1, int(_SHARE_FOR_STEPS * minutes * 60 / pace))))
