"""Our side of the comparisons: a pretraining built from settings as the stage builds it, run a few steps at a time.

No run folder, no evaluation, no checkpoint; what is timed is the project's own loop, loader, views and objectives.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from ssl_ft.artifact import InputContract
from ssl_ft.bench.timing import Work
from ssl_ft.build.objectives import build_objective
from ssl_ft.build.parts import (
    build_views,
    encoder_spec,
    new_encoder,
    pretrain_optimizer,
    pretrain_plan,
)
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import Batch, batches
from ssl_ft.data.store import ImageStore
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.objectives.simclr import SimCLR

# ImageNet's, which the peer's transform uses too; timing does not depend on them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# So long a plan that its warm-up never ends here: weights stay near their start, whatever is measured.
_NUM_STEPS = 10**6
_NEVER = 10**9
_COUNTED_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Training:
    """A pretraining that can be run a few steps at a time.

    Attributes:
        objective: on its device.
        optimizer: over its parameters.
        plan: how to step.
        store: the pool.
        batch_size: images a step.
        device: where to compute.
        workers: decoding threads.
    """

    objective: nn.Module
    optimizer: Optimizer
    plan: LoopPlan
    store: ImageStore
    batch_size: int
    device: torch.device
    workers: int


def input_contract(size: int) -> InputContract:
    """The input of a colour encoder of `size` pixels."""
    return InputContract(size, 3, _MEAN, _STD)


def build_training(settings: PretrainSettings, store: ImageStore, device: torch.device) -> Training:
    """Everything the settings name, on the pool and device given; `settings.size` must be set."""
    assert settings.size is not None, "a benchmark says how large its input is"
    spec = encoder_spec(settings.encoder, channels=3, size=settings.size)
    encoder, _ = new_encoder(settings.encoder, spec, seed=settings.seed)
    objective = build_objective(settings, encoder, build_views(settings, input_contract(settings.size)), device)
    plan = pretrain_plan(settings, num_steps=_NUM_STEPS, num_images=len(store))
    return Training(
        objective.train(),
        pretrain_optimizer(settings, objective),
        replace(plan, eval_every=0, save_every=_NEVER),
        store,
        settings.batch_size,
        device,
        settings.data.workers,
    )


def end_to_end(training: Training, *, num_steps: int) -> Work:
    """Work that goes on for `num_steps` steps of the training, from pool to weights."""
    done = 0

    def block() -> None:
        nonlocal done
        done = _run(training, _stream(training, start=done, end=done + num_steps), start=done)

    return block


def fed_steps(training: Training, *, num_steps: int) -> Work:
    """The same with one batch that is on the device already, so that nothing is loaded."""
    batch = one_batch(training)
    return lambda: _run(training, [batch] * num_steps, start=0)


def model_steps(training: Training, *, num_steps: int) -> Work:
    """Bare steps of a SimCLR model on views that are there already: forward, backward, update, without the loop."""
    objective = cast(SimCLR, training.objective)
    batch = one_batch(training)
    images = torch.cat([objective.views(batch, view=0), objective.views(batch, view=1)])

    def block() -> None:
        for _ in range(num_steps):
            training.optimizer.zero_grad(set_to_none=True)
            with mixed(training):
                loss = objective.loss_of(objective.encoder(images)).total
            loss.backward()
            training.optimizer.step()

    return block


def one_batch(training: Training) -> Batch:
    """The training's first batch, on its device."""
    return next(iter(_stream(training, start=0, end=1))).to(training.device)


def mixed(training: Training) -> torch.autocast:
    """The training's precision, to be entered once."""
    dtype = training.plan.autocast
    return torch.autocast(training.device.type, dtype, enabled=dtype is not None)


def _stream(training: Training, *, start: int, end: int) -> Iterable[Batch]:
    return batches(
        training.store,
        batch_size=training.batch_size,
        seed=0,
        start_step=start,
        num_steps=end,
        workers=training.workers,
    )


def _run(training: Training, stream: Iterable[Batch], *, start: int) -> int:
    calls = LoopCalls(
        log=lambda step, row: None,
        evaluate=lambda step: False,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    return run_steps(
        training.objective,
        training.optimizer,
        stream,
        plan=training.plan,
        calls=calls,
        device=training.device,
        start_step=start,
        seed=0,
    )


def flops_per_image(forward: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Floating-point operations of convolutions and matrix products, forward and backward, for each of `images`.

    Args:
        forward: the model; what it gives is reduced to a scalar and backed up.
        images: [B, C, H, W]; a few are enough.
    """
    few = images[:_COUNTED_IMAGES]
    with FlopCounterMode(display=False) as counter:
        forward(few).float().square().mean().backward()
    return float(counter.get_total_flops()) / len(few)


def matrix_product(side: int, dtype: torch.dtype, device: torch.device, *, repeats: int = 1) -> tuple[Work, float]:
    """A product of two square matrices done `repeats` times, and the operations that takes."""
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)
    return lambda: [torch.mm(first, second, out=out) for _ in range(repeats)], 2.0 * repeats * side**3
