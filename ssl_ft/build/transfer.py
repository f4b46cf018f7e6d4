"""A fine-tuning from settings: the weights it starts from, its plan, and the training as a function of its arguments.

Strategies are in `build/strategies.py`, budgets and reading images in `build/labels.py`.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ssl_ft.build.draft import Draft, Start, with_head
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.build.origins import Origin, load_origin
from ssl_ft.build.parts import optimizer_for
from ssl_ft.build.strategies import prepare
from ssl_ft.build.tasks import (
    JUDGES,
    SCORE_NAMES,
    build_label_order,
    build_objective,
    read_val,
    scale_of,
)
from ssl_ft.compress.distilled import Distilled
from ssl_ft.config import FinetuneSettings
from ssl_ft.config.parts import ViewSettings
from ssl_ft.data.store import Damage
from ssl_ft.errors import UserError
from ssl_ft.loop import LoopPlan
from ssl_ft.models.fit import check_input
from ssl_ft.peak import PeakMemory
from ssl_ft.result import Parent
from ssl_ft.schedules import scaled_rate
from ssl_ft.transfer.finetune import Fitted, finetune, judge_first, score
from ssl_ft.transfer.number_head import fold_scale
from ssl_ft.transfer.strategy import Prepared, head_of

# Evaluations on val over a whole training, whatever its length in epochs.
_MOST_EVALUATIONS = 60


@dataclass(frozen=True, eq=False)
class Trained:
    """A classifier that was trained, and what that took.

    Attributes:
        model: the plain timm module, merged, in evaluation mode, on the CPU.
        step: steps of the weights kept.
        num_steps: steps of the whole schedule, whether or not all were done.
        val_accuracy: of the weights kept; None without val labels, or where they were fitted on.
        val_loss: mean cross-entropy of the same.
        num_train: images trained on.
        num_val: images of val that could be read.
        num_trained: parameters of the classifier that were fitted or could move, adapters that were merged included.
        seconds: of preparing and training, without reading val.
        peak_memory_mb: the most this process held meanwhile, in MiB; of the GPU's memory where one computed.
        damages: training images that could not be read, each replaced by another.
        score_name: what `val_accuracy` is: for other tasks than classes mean average precision or mean R².
    """

    model: nn.Module
    step: int
    num_steps: int
    val_accuracy: float | None
    val_loss: float | None
    num_train: int
    num_val: int
    num_trained: int
    seconds: float
    peak_memory_mb: float
    damages: tuple[Damage, ...]
    score_name: str = "accuracy"


def load_start(origin: Origin) -> tuple[Start, Parent]:
    """The encoder that was found, and what to record of it."""
    encoder, parent = load_origin(origin)
    # The layout convolutions prefer; copies keep it, such as what weights are held near.
    encoder = encoder.to(memory_format=torch.channels_last)
    return Start(encoder, origin.card.spec, origin.card.contract), parent


def finetune_plan(settings: FinetuneSettings, *, num_train: int) -> LoopPlan:
    """How the loop steps: the epochs asked for, or longer where the labels are few."""
    batch_size = min(settings.batch_size, num_train)
    per_epoch = max(1, num_train // batch_size)
    return _plan(settings, batch_size, max(settings.epochs * per_epoch, settings.min_steps), per_epoch=per_epoch)


def _plan(settings: FinetuneSettings, batch_size: int, num_steps: int, *, per_epoch: int) -> LoopPlan:
    optim = settings.optim
    return LoopPlan(
        num_steps=num_steps,
        warmup_steps=round(optim.warmup * num_steps),
        rate=scaled_rate(optim.rate, rule=optim.rule, batch_size=batch_size),
        final_share=optim.final_share,
        clip_norm=optim.clip_norm,
        autocast=torch.bfloat16 if settings.precision == "bf16" else None,
        log_every=max(1, num_steps // _MOST_EVALUATIONS),
        eval_every=max(per_epoch, -(-num_steps // _MOST_EVALUATIONS)),
        save_every=num_steps,
    )


def train_classifier(
    settings: FinetuneSettings,
    start: Start,
    images: LabelledImages,
    split: LabelSplit,
    *,
    device: torch.device,
    stop_at: int | None = None,
    num_steps: int | None = None,
    num_outputs: int | None = None,
    extend: Callable[[Prepared], Prepared] = lambda prepared: prepared,
    taught: Callable[[Prepared], Distilled] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_row: Callable[[int, dict[str, float]], None] | None = None,
) -> Trained:
    """Train a classifier by the strategy of the settings; the same arguments give the same weights.

    No run folder is touched, and no label outside `split.train` and `split.val` is looked at.

    Args:
        settings: strategy, steps, rates, views; its budget and its encoder are not read here.
        start: where the encoder's weights come from.
        images: the labelled images.
        split: trained on train, stopped and chosen on val. With an empty val the last weights are kept.
        device: where to compute.
        stop_at: steps to do of the schedule; None does all. With an empty val this repeats a choice on more labels.
        num_steps: length of the schedule; None takes that of the settings for this many labels. For a refit, that of
            the training it repeats.
        num_outputs: outputs that will be left, the first ones: val is judged by these, as test will be; None: all.
        extend: adds to what the strategy prepared, such as a penalty on unlabelled images.
        taught: what is minimised on `split.train` instead of the loss of its labels alone; None for that.
        should_stop: whether the person wants to stop.
        on_row: called with the steps done and rows for the log; None where nobody reads them.

    Raises:
        UserError: nothing to train on, or a strategy this encoder does not have.
    """
    if not len(split.train):
        raise UserError("the label budget leaves nothing to train on")
    contract = start.contract
    check_views(settings.views, start)
    scale, task = scale_of(images, split.train), images.source.task
    judge = JUDGES[task] if num_outputs is None else judge_first(num_outputs, JUDGES[task])
    val = read_val(images, split.val, contract=contract, scale=scale)
    batch_size = min(settings.batch_size, len(split.train))
    plan = finetune_plan(settings, num_train=len(split.train))
    if num_steps is not None:
        plan = _plan(settings, batch_size, num_steps, per_epoch=max(1, len(split.train) // batch_size))
    began, peak = time.monotonic(), PeakMemory(device)
    prepared = extend(_prepare(settings, start, images, split, device=device))
    # What is left in the classifier, not what helped to train it, such as a critic; counted before adapters are merged.
    own = {id(p) for p in prepared.model.parameters()}
    num_trained = prepared.num_fitted + sum(p.numel() for p in prepared.trained() if id(p) in own)
    fitted, plan_steps, damages = Fitted(0, None), 0, list[Damage]()
    if prepared.groups:
        store = images.store(split.train, contract, seed=settings.seed)
        objective = (
            build_objective(settings, prepared, images, split.train, contract=contract)
            if taught is None
            else taught(prepared)
        )
        fitted = finetune(
            objective.to(device),
            optimizer_for(settings.optim, prepared.groups, batch_size=batch_size), store, val,
            prepared=prepared, contract=contract, plan=plan, stop_at=stop_at, batch_size=batch_size,
            patience=settings.patience, patient_until=settings.min_steps, device=device, seed=settings.seed,
            should_stop=should_stop, on_row=on_row, judge=judge, score_name=SCORE_NAMES[task],
            order=build_label_order(settings, images, split.train),
        )  # fmt: skip
        plan_steps, damages = plan.num_steps, store.damages
    seconds = time.monotonic() - began  # what follows tells how good it is
    if not prepared.groups and len(val.labels):
        # What is kept was fitted on val too; how good it is, val can tell of the same fit without it alone.
        without = _prepare(settings, start, images, replace(split, val=split.val[:0]), device=device)
        fitted = Fitted(0, *score(without.merge(), val, contract, device=device, judge=judge))
    merged = prepared.merge().to("cpu").to(memory_format=torch.contiguous_format).eval()
    if scale is not None:
        fold_scale(head_of(merged), scale)
    return Trained(
        merged,
        fitted.step,
        plan_steps,
        fitted.val_accuracy,
        fitted.val_loss,
        len(split.train),
        len(val.labels),
        num_trained,
        round(seconds, 3),
        peak.mb(),
        tuple(damages),
        SCORE_NAMES[task],
    )


def check_views(views: ViewSettings, start: Start) -> None:
    """Refuse views of a size that the encoder does not take.

    Raises:
        UserError: as said.
    """
    if views.size is not None and views.size != start.contract.size:
        check_input(start.encoder, replace(start.spec, size=views.size), setting="encoder", size_setting="views.size")


def _prepare(
    settings: FinetuneSettings, start: Start, images: LabelledImages, split: LabelSplit, *, device: torch.device
) -> Prepared:
    model = with_head(copy.deepcopy(start.encoder), num_classes=len(images.output_names), seed=settings.seed)
    draft = Draft(model.to(device), start, images, split.train, split.val, device)
    return prepare(settings, draft)
