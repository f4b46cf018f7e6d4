"""The one training loop, a function: steps, and calls back to log, evaluate and save. Knows no stage and no file."""

import inspect
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssl_ft import dist
from ssl_ft.errors import UserError
from ssl_ft.objectives.joint import gradient_agreement
from ssl_ft.objectives.parts import LossParts
from ssl_ft.optim import set_rate
from ssl_ft.schedules import warmup_cosine
from ssl_ft.seeding import derive_seed

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
    """What the loop calls: each gets the number of steps done."""

    log: Callable[[int, dict[str, float]], None]
    evaluate: Callable[[int], bool]  # True asks to stop early
    save: Callable[[int], None]
    should_stop: Callable[[], bool]


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
        calls: log, evaluate, save, should_stop.
        device: where to compute.
        start_step: steps done before.
        seed: dropout's draws depend on it, the step and the rank alone.
        average: running average of the encoder, updated after each step.

    Returns:
        The number of steps done in all.

    Raises:
        UserError: the loss is not finite any more; nothing of that is saved.
    """
    trained = _wrap(objective, device)
    window_start, window_steps = time.monotonic(), 0
    finite = torch.ones((), dtype=torch.bool, device=device)
    step = start_step
    for batch in batches:
        set_rate(optimizer, rate_at(step, plan))
        _seed_dropout(derive_seed(seed, "step", step, dist.rank()) >> 1, device)
        is_logged = (step + 1) % plan.log_every == 0 or step + 1 == plan.num_steps
        loss, extra = _backward(trained, objective, batch.to(device), plan=plan, is_measured=is_logged)
        norm = nn.utils.clip_grad_norm_(objective.parameters(), plan.clip_norm or float("inf"))
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
            row["seconds_per_step"] = (time.monotonic() - window_start) / window_steps
            calls.log(step, row)
        if is_evaluated:
            is_stopped |= dist.any_rank(calls.evaluate(step))
        if is_saved or is_stopped:
            calls.save(step)
        if is_logged:
            window_start, window_steps = time.monotonic(), 0
        if is_stopped:
            break
    return step


def rate_at(step: int, plan: LoopPlan) -> float:
    """Learning rate of a 0-based step."""
    share = warmup_cosine(step, num_steps=plan.num_steps, warmup_steps=plan.warmup_steps, final_share=plan.final_share)
    return plan.rate * share


def _seed_dropout(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _wrap(objective: nn.Module, device: torch.device) -> nn.Module:
    if dist.world_size() == 1:
        return objective
    # Buffers are equal on all ranks already: batch norm is global. Broadcasting them would cost a collective a step.
    # torch 2.15 gave the switch a new name and warns about the old one, which is the only one before.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {switch: False}
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, **options)


def _backward(
    trained: nn.Module, objective: nn.Module, batch: Any, *, plan: LoopPlan, is_measured: bool
) -> tuple[LossParts, dict[str, float]]:
    """Gradients of the mean loss over the batch's parts; the loss returned is that mean."""
    trained.zero_grad(set_to_none=True)
    losses, extra = [], {}
    parts = batch.split(plan.accumulate) if plan.accumulate > 1 else [batch]
    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        waits = isinstance(trained, DistributedDataParallel) and not is_last
        with trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with torch.autocast(_device_type(trained), plan.autocast, enabled=plan.autocast is not None):
                loss: LossParts = trained(part)
            if is_measured and is_last and len(loss.terms) > 1:
                encoder: nn.Module = objective.encoder  # type: ignore[assignment]
                extra = gradient_agreement(loss.terms, [p for p in encoder.parameters() if p.requires_grad])
            (loss.total / len(parts)).backward()
            losses.append(loss)
    mean = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    return LossParts(torch.stack([loss.total.detach() for loss in losses]).mean(), mean), extra


def _device_type(module: nn.Module) -> str:
    return next(module.parameters()).device.type


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
