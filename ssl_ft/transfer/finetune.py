"""Fine-tuning a classifier on few labels: augmentation, early stopping and the best model, all judged on val alone.

The test split never comes here. Which weights move how is said by a `Prepared` (`strategy.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_ft.artifact import InputContract
from ssl_ft.data.batches import batches
from ssl_ft.data.store import ImageStore
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.transfer.strategy import Prepared, begin_step, restore, set_modes, snapshot


@dataclass(frozen=True, eq=False)
class ValSet:
    """Labels to stop and choose on; both empty where the budget has no label to spare.

    Attributes:
        pixels: uint8 [N, C, size, size].
        labels: int64 [N].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    Attributes:
        step: steps done when the model kept was reached.
        val_accuracy: of that model; None without val labels.
        val_loss: its mean cross-entropy there; None without val labels.
    """

    step: int
    val_accuracy: float | None
    val_loss: float | None = None


def finetune(
    objective: Supervised,
    optimizer: Optimizer,
    store: ImageStore,
    val: ValSet,
    *,
    prepared: Prepared,
    contract: InputContract,
    plan: LoopPlan,
    stop_at: int | None = None,
    batch_size: int,
    patience: int,
    device: torch.device,
    seed: int,
    should_stop: Callable[[], bool],
    on_row: Callable[[int, dict[str, float]], None],
) -> Fitted:
    """Train the objective's model and leave in it the weights that were best on val.

    Better means higher accuracy, then lower cross-entropy. Without val labels the last weights are kept and nothing
    stops early.

    Args:
        objective: model, labels and augmentation.
        optimizer: over the groups of `prepared`.
        store: the labelled training images.
        val: labels to choose on.
        prepared: what moves, from when, and what stays; its model is the objective's.
        contract: the model's input.
        plan: how to step; evaluates every `eval_every` steps.
        stop_at: steps of the plan to do; None does all.
        batch_size: images a step.
        patience: evaluations without a better score before training stops.
        device: where to compute.
        seed: order of the images and dropout.
        should_stop: whether the person wants to stop.
        on_row: called with rows for the log.
    """
    best_score: tuple[float, float] | None = None
    best: list[Tensor] = []
    num_steps = plan.num_steps if stop_at is None else min(stop_at, plan.num_steps)
    best_step, num_worse = num_steps, 0

    def evaluate(step: int) -> bool:
        nonlocal best_score, best, best_step, num_worse
        if not len(val.labels):
            return False
        accuracy, loss = score(objective.encoder, val, contract, device=device)
        set_modes(prepared)
        on_row(step, {"val_accuracy": accuracy, "val_loss": loss})
        if best_score is None or (accuracy, -loss) > best_score:
            best_score, best_step, num_worse = (accuracy, -loss), step, 0
            best = snapshot(prepared)
        else:
            num_worse += 1
        return num_worse >= patience

    after_step = prepared.after_step
    if after_step is not None:
        optimizer.register_step_post_hook(lambda own, args, kwargs: after_step(own))
    set_modes(prepared)
    run_steps(
        objective,
        optimizer,
        batches(store, batch_size=batch_size, seed=seed, start_step=0, num_steps=num_steps, workers=2),
        plan=plan,
        calls=LoopCalls(
            log=on_row,
            evaluate=evaluate,
            save=lambda step: None,
            should_stop=should_stop,
            begin=lambda step: begin_step(prepared, step, num_steps=plan.num_steps),
        ),
        device=device,
        start_step=0,
        seed=seed,
    )
    if best_score is None:
        return Fitted(best_step, None)
    restore(prepared, best)
    return Fitted(best_step, best_score[0], -best_score[1])


def score(model: nn.Module, val: ValSet, contract: InputContract, *, device: torch.device) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a classifier on labelled images."""
    logits = compute_outputs(model, val.pixels, contract, device=device, batch_size=256)
    labels = torch.from_numpy(val.labels)
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), labels).item()
    return float((logits.argmax(1) == val.labels).mean()), loss
