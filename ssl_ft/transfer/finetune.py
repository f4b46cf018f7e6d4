"""Fine-tuning a classifier on few labels: augmentation, early stopping and the best model, all judged on val alone.

The test split never comes here. Which weights move how is said by a `Prepared` (`strategy.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ssl_ft.artifact import InputContract
from ssl_ft.compress.distilled import Distilled
from ssl_ft.data.batches import batches
from ssl_ft.data.permutation import Order, permute
from ssl_ft.data.store import ImageStore
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.evaluate.target_metrics import mean_average_precision, mean_r2
from ssl_ft.loop import LoopCalls, LoopPlan, run_steps
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.objectives.target_losses import masked_binary_cross_entropy, masked_squared_error
from ssl_ft.objectives.targeted import Targeted
from ssl_ft.transfer.strategy import Prepared, begin_step, first_step, restore, set_modes, snapshot


@dataclass(frozen=True, eq=False)
class ValSet:
    """Labels to stop and choose on; both empty where the budget has no label to spare.

    Attributes:
        pixels: uint8 [N, C, size, size].
        labels: int64 [N]; for other tasks the targets, float32 [N, K], NaN = missing, numbers standardised.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | NDArray[np.float32]


Judge = Callable[[NDArray[np.float32], NDArray[Any]], tuple[float, float]]
"""(outputs [N, K], labels) -> a score of which more is better, and the loss."""


def judge_classes(logits: NDArray[np.float32], labels: NDArray[Any]) -> tuple[float, float]:
    """Accuracy, and mean cross-entropy."""
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return float((logits.argmax(1) == labels).mean()), loss


def judge_labels(logits: NDArray[np.float32], targets: NDArray[Any]) -> tuple[float, float]:
    """Mean average precision over labels with a positive (0 where none has one), and binary cross-entropy."""
    loss = masked_binary_cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    score = mean_average_precision(targets, logits.astype(np.float64))
    return 0.0 if np.isnan(score) else score, loss


def judge_numbers(outputs: NDArray[np.float32], targets: NDArray[Any]) -> tuple[float, float]:
    """Mean R² over targets that vary (less the loss where none does), and the mean squared error."""
    loss = masked_squared_error(torch.from_numpy(outputs), torch.from_numpy(targets)).item()
    score = mean_r2(targets, outputs.astype(np.float64))
    return -loss if np.isnan(score) else score, loss


def judge_first(count: int, judge: Judge) -> Judge:
    """The judge, which looks at the first `count` outputs alone: for a model that others will be taken off."""
    return lambda outputs, labels: judge(outputs[:, :count], labels)


# Below so many labels the standard error of an accuracy is 7 points and more.
LEAST_TO_CHOOSE = 50


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    Attributes:
        step: steps done when the model kept was reached.
        val_accuracy: its score, which for other tasks than classes is that of their `Judge`; None without val labels.
        val_loss: its mean loss there; None without val labels.
    """

    step: int
    val_accuracy: float | None
    val_loss: float | None = None


def finetune(
    objective: Supervised | Targeted | Distilled,
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
    patient_until: int = 0,
    device: torch.device,
    seed: int,
    should_stop: Callable[[], bool],
    on_row: Callable[[int, dict[str, float]], None] | None,
    judge: Judge = judge_classes,
    score_name: str = "accuracy",
    order: Order = permute,
) -> Fitted:
    """Train the objective's model and leave in it the weights that were best on val.

    Better means a higher score, such as accuracy, then a lower loss. With fewer val labels than `LEAST_TO_CHOOSE` the
    last weights are kept and nothing stops early: the best of many looks at a few images is luck. Nothing stops either
    before the rate has risen and all that is to move moves: until then val says little of where training leads.

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
        patient_until: steps before which it does not stop, whatever val says.
        device: where to compute.
        seed: order of the images and dropout.
        should_stop: whether the person wants to stop.
        on_row: called with rows for the log; None where nobody reads them, and val is then read at the end alone if
            nothing is chosen by it.
        judge: what val is scored by.
        score_name: what that score is called in the log.
        order: in which the images come.

    Raises:
        UserError: a step has one image, and a batch norm is trained.
    """
    best_score: tuple[float, float] | None = None
    best: list[Tensor] = []
    num_steps = plan.num_steps if stop_at is None else min(stop_at, plan.num_steps)
    chooses = len(val.labels) >= LEAST_TO_CHOOSE
    best_step, num_worse = num_steps, 0
    begins = [first_step(phase, num_steps=plan.num_steps) for phase in prepared.phases]
    settled = max([patient_until, plan.warmup_steps, *begins])

    def log(step: int, row: dict[str, float]) -> None:
        if on_row is not None:
            on_row(step, row)

    def evaluate(step: int) -> bool:
        nonlocal best_score, best, best_step, num_worse
        if not len(val.labels) or not (chooses or on_row is not None or step == num_steps):
            return False
        accuracy, loss = score(objective.encoder, val, contract, device=device, judge=judge)
        set_modes(prepared)
        log(step, {f"val_{score_name}": accuracy, "val_loss": loss})
        if not chooses:
            best_score, best_step = (accuracy, -loss), step
        elif best_score is None or (accuracy, -loss) > best_score:
            best_score, best_step, num_worse = (accuracy, -loss), step, 0
            best = snapshot(prepared)
        elif step > settled:
            num_worse += 1
        return num_worse >= patience

    after_step = prepared.after_step
    if after_step is not None:
        optimizer.register_step_post_hook(lambda own, args, kwargs: after_step(own))
    set_modes(prepared)
    if batch_size < 2 and any(isinstance(m, _BatchNorm) and m.training for m in objective.encoder.modules()):
        raise UserError(
            "batch_size=1: batch norms that are trained take mean and spread over a step's images, and one image has "
            "none; take 2 images a step or more (more labels where the budget has one), or batch_norm=source"
        )
    run_steps(
        objective,
        optimizer,
        batches(store, batch_size=batch_size, seed=seed, start_step=0, num_steps=num_steps, workers=2, order=order),
        plan=plan,
        calls=LoopCalls(
            log=log,
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
    if chooses:
        restore(prepared, best)
    return Fitted(best_step, best_score[0], -best_score[1])


def score(
    model: nn.Module,
    val: ValSet,
    contract: InputContract,
    *,
    device: torch.device,
    judge: Judge = judge_classes,
) -> tuple[float, float]:
    """Score and mean loss of a model on labelled images: of a classifier accuracy and cross-entropy."""
    return judge(compute_outputs(model, val.pixels, contract, device=device, batch_size=256), val.labels)
