"""The one training loop, a function: steps, and calls back to log, evaluate and save. Knows no stage and no file."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssl_ft import dist
from ssl_ft.backward import backward, wrap
from ssl_ft.errors import UserError
from ssl_ft.optim import set_rate
from ssl_ft.schedules import warmup_cosine
from ssl_ft.seeding import derive_seed
from ssl_ft.sharded import clip_gradients

# On several ranks the wish to stop is agreed on only every so often: a collective a step would cost more.
_STOP_EVERY = 8


class StepBatch(Protocol):
    """What the loop needs of a batch: it can move to a device and be cut for accumulation."""

    def to(self, device: torch.device) -> Any:
        """The same batch on a device."""
        ...

    def split(self, num_parts: int) -> list[Any]:
        """Equal parts."""
        ...


@dataclass(frozen=True)
class LoopPlan:
    """How to step.

    Attributes:
        num_steps: one past the last step.
        warmup_steps: steps of linear warm-up.
        rate: peak learning rate.
        final_share: share of the peak left at the end.
        clip_norm: largest norm of the gradient; None does not clip.
        accumulate: parts a batch is cut into.
        autocast: dtype of mixed precision; None computes in the parameters' own.
        log_every: steps between training rows.
        eval_every: steps between evaluations; 0 never evaluates.
        save_every: steps between checkpoints.
    """

    num_steps: int
    warmup_steps: int
    rate: float
    final_share: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 100


@dataclass(frozen=True)
class LoopCalls:
    """What the loop calls: each gets the number of steps done; `begin` before a step, the others after it."""

    log: Callable[[int, dict[str, float]], None]
    evaluate: Callable[[int], bool]  # True asks to stop early
    save: Callable[[int], None]
    should_stop: Callable[[], bool]
    begin: Callable[[int], None] = lambda step: None


def run_steps(
    objective: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[StepBatch],
    *,
    plan: LoopPlan,
    calls: LoopCalls,
    device: torch.device,
    start_step: int,
    seed: int,
    average: AveragedModel | None = None,
) -> int:
    """Train from `start_step` until the plan's end, a stop that was asked for, or the end of the batches.

    Args:
        objective: `objective(batch) -> LossParts`; wrapped for several ranks here.
        optimizer: over its parameters, groups with a `scale`.
        batches: those of steps `start_step`, `start_step` + 1, …
        plan: how to step.
        calls: log, evaluate, save, should_stop, begin.
        device: where to compute.
        start_step: steps done before.
        seed: dropout's draws depend on it, the step and the rank alone.
        average: running average of the encoder, updated after each step.

    Returns:
        The number of steps done in all.

    Raises:
        UserError: the loss is not finite any more; nothing of that is saved.
    """
    trained = wrap(objective, device, accumulate=plan.accumulate)
    window_start, window_steps, waits = time.monotonic(), 0, list[float]()
    finite = torch.ones((), dtype=torch.bool, device=device)
    step = start_step
    for batch in _timed(batches, waits):
        calls.begin(step)
        set_rate(optimizer, rate_at(step, plan))
        reseed = partial(_seed_dropout, seed, step, device)
        reseed(0)
        is_logged = (step + 1) % plan.log_every == 0 or step + 1 == plan.num_steps
        loss, extra = backward(
            trained,
            objective,
            batch.to(device),
            accumulate=plan.accumulate,
            autocast=plan.autocast,
            is_measured=is_logged,
            reseed=reseed,
        )
        norm = clip_gradients(objective, plan.clip_norm)
        optimizer.step()
        if average is not None:
            average.update_parameters(objective.encoder)  # type: ignore[arg-type]
        step, window_steps = step + 1, window_steps + 1
        finite &= torch.isfinite(loss.total) & torch.isfinite(norm)
        is_saved = step % plan.save_every == 0 or step == plan.num_steps
        is_stopped = _agree_to_stop(step, calls)
        is_evaluated = plan.eval_every > 0 and (step % plan.eval_every == 0 or step == plan.num_steps)
        if is_logged or is_saved or is_stopped or is_evaluated:
            _refuse_non_finite(finite, step=step, plan=plan)
        if is_logged:
            row = {
                "loss": dist.mean_over_ranks(loss.total).item(),
                "lr": rate_at(step - 1, plan),
                "grad_norm": norm.item(),
            }
            row |= {name: dist.mean_over_ranks(value).item() for name, value in loss.parts.items()} | extra
            seconds = time.monotonic() - window_start
            row["seconds_per_step"] = seconds / window_steps
            stall = torch.tensor(sum(waits) / max(seconds, 1e-9), device=device)
            row["stall_share"] = round(dist.mean_over_ranks(stall).item(), 4)
            calls.log(step, row)
        if is_evaluated:
            is_stopped |= dist.any_rank(calls.evaluate(step))
        if is_saved or is_stopped:
            calls.save(step)
        if is_logged:
            window_start, window_steps = time.monotonic(), 0
            waits.clear()
        if is_stopped:
            break
    return step


def _timed(batches: Iterable[StepBatch], waits: list[float]) -> Iterator[StepBatch]:
    """The batches, with the seconds that each was waited for appended to `waits`."""
    asked = time.monotonic()
    for batch in batches:
        waits.append(time.monotonic() - asked)
        yield batch
        asked = time.monotonic()


def rate_at(step: int, plan: LoopPlan) -> float:
    """Learning rate of a 0-based step."""
    share = warmup_cosine(step, num_steps=plan.num_steps, warmup_steps=plan.warmup_steps, final_share=plan.final_share)
    return plan.rate * share


def _seed_dropout(seed: int, step: int, device: torch.device, part: int) -> None:
    own = derive_seed(seed, "step", step, dist.rank(), *([part] if part else [])) >> 1
    torch.default_generator.manual_seed(own)
    if device.type == "cuda":
        torch.cuda.manual_seed(own)


def _agree_to_stop(step: int, calls: LoopCalls) -> bool:
    if dist.world_size() == 1:
        return calls.should_stop()
    return step % _STOP_EVERY == 0 and dist.any_rank(calls.should_stop())


def _refuse_non_finite(finite: Tensor, *, step: int, plan: LoopPlan) -> None:
    if dist.any_rank(not bool(finite)):
        raise UserError(
            f"the loss or its gradient stopped being finite between steps {max(0, step - plan.log_every)} and {step} "
            f"(peak learning rate {plan.rate:g}). The last checkpoint, if there is one, is from before. Lower "
            "optim.rate, lengthen optim.warmup, or set optim.clip_norm=1"
        )
