"""Compress by method=distill: a student learns a classifier's outputs, beside the very same student without a teacher.

Distilling of encoders, which needs no label, is `feature_distilling.py`; losses and modules are in `compress/`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.draft import Start
from ssl_ft.build.origins import record_start
from ssl_ft.build.pairs import Contender
from ssl_ft.build.parts import view_recipe
from ssl_ft.build.selftraining import Unlabelled, without_copies
from ssl_ft.build.students import Student, make_student
from ssl_ft.build.transfer import Trained, finetune_plan, train_classifier
from ssl_ft.compress.depth_heads import DepthHeads, earlier_widths
from ssl_ft.compress.distill_losses import hard_target_loss, soft_target_loss
from ssl_ft.compress.distilled import Distilled, Teach
from ssl_ft.compress.teacher import Teacher
from ssl_ft.config import DistillSettings, FinetuneSettings
from ssl_ft.data.batches import Batch, ViewMaker, batches
from ssl_ft.errors import UserError
from ssl_ft.handover import record_data
from ssl_ft.objectives.mixing import Mixing
from ssl_ft.objectives.target_losses import class_weights
from ssl_ft.runlog import say
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.strategy import Prepared, scaled_groups

# More steps than any training takes: the stream is left where training ends.
_ENDLESS = 10**9


def distill(work: Work) -> Compressed:
    """A student of the model.

    Raises:
        UserError: another task than classes, or a student that cannot be had.
    """
    settings = work.settings.distill or DistillSettings()
    if work.card.task != "classes":
        raise UserError(
            f"method=distill teaches classes alone, and {work.settings.model} is a model of task={work.card.task}: its "
            "outputs are no shares for a temperature to soften. `ssl-ft finetune` trains a small encoder on its labels"
        )
    seed = work.training.seed
    student = make_student(settings, work.card, work.model, seed=seed)
    if student.origin is not None:
        record_start(work.run, *student.origin)
    pool = None
    if settings.pool is not None:
        pool = without_copies(settings.pool, work.images.source, work.split, run=work.run, setting="distill.pool")
        record_data(work.run, pool.images.source, pool.images.source.subset(pool.rows), role="pool")
    # A fresh encoder moves at the head's rate, one that was trained before at its share of it.
    strategy = "scratch" if student.origin is None else "full"
    training = work.training.model_copy(update={"strategy": strategy})
    num_images = max(len(work.split.train), 0 if pool is None else len(pool.rows))
    train = partial(
        train_classifier, training, student.start, work.images, work.split, device=work.device,
        num_steps=finetune_plan(training, num_train=num_images).num_steps, should_stop=work.should_stop,
        on_row=work.on_row,
    )  # fmt: skip
    say(f"== a student, {student.start.spec.name}, of {student.num_parameters:,} parameters")
    taught, extend = _teaching(settings, training, work, student, pool)
    trained = train(taught=taught, extend=extend)
    pair = None
    if settings.baseline and not work.should_stop():
        say("== the same student without a teacher")
        plain = train()
        contract = student.start.contract
        pair = Contender("student", trained, contract), Contender("student alone", plain, contract)
    return _made(work, student, trained, pair)


def _made(work: Work, student: Student, trained: Trained, pair: tuple[Contender, Contender] | None) -> Compressed:
    start, card = student.start, work.card
    return Compressed(
        trained.model,
        replace(card, spec=start.spec, contract=start.contract, about={}),
        steps=trained.step,
        num_val=trained.num_val,
        damages=trained.damages,
        num_earlier=0 if student.origin is None else student.origin[0].num_labels,
        pair=pair,
    )


def _teaching(
    settings: DistillSettings, training: FinetuneSettings, work: Work, student: Student, pool: Unlabelled | None
) -> tuple[Callable[[Prepared], Distilled], Callable[[Prepared], Prepared]]:
    """What the student minimises, and what that adds to the student while it trains: heads on its earlier layers."""
    start, heads = student.start, list[DepthHeads]()
    has_depth = settings.kind == "self" and settings.teacher != "model"
    has_teacher = settings.kind != "self" or settings.teacher != "depth"
    teach: Teach = hard_target_loss
    if settings.kind != "hard":
        teach = partial(soft_target_loss, temperature=settings.temperature)
    labels = work.images.labels[work.split.train]
    recipe = view_recipe(training.views, size=start.contract.size, channels=start.contract.channels)
    imbalance, counts = training.imbalance, np.bincount(labels, minlength=len(work.card.output_names)).tolist()

    def extend(prepared: Prepared) -> Prepared:
        if not has_depth:
            return prepared
        own = DepthHeads(
            prepared.model, widths=earlier_widths(prepared.model, _blank(start).to(work.device)),
            num_classes=len(work.card.output_names), seed=training.seed,
        ).to(work.device)  # fmt: skip
        heads.append(own)
        rates = dict.fromkeys((name for name, _ in own.named_parameters()), 1.0)
        more = scaled_groups(own, rates, weight_decay=training.optim.weight_decay)

        def merge() -> torch.nn.Module:
            own.release()
            return prepared.merge()

        return replace(prepared, groups=[*prepared.groups, *more], merge=merge)

    def taught(prepared: Prepared) -> Distilled:
        mixing = training.mix
        return Distilled(
            prepared.model,
            torch.from_numpy(labels),
            views=ViewMaker(recipe, start.contract.mean, start.contract.std, training.seed),
            class_weights_K=class_weights(counts, how=imbalance.weights, beta=imbalance.beta).float(),
            share=settings.mix,
            teach=teach,
            teacher=Teacher(work.model, work.card.contract, student=start.contract, device=work.device)
            if has_teacher
            else None,
            label_smoothing=training.label_smoothing,
            mixing=Mixing(mixing.mixup, mixing.cutmix, training.seed) if mixing.mixup or mixing.cutmix else None,
            more=None if pool is None else _views_of(pool, training, start, device=work.device),
            depth=heads[-1] if heads else None,
            depth_weight=settings.depth_weight,
        )

    return taught, extend


def _blank(start: Start) -> Tensor:
    return torch.zeros(1, start.contract.channels, start.contract.size, start.contract.size)


def _views_of(
    pool: Unlabelled, training: FinetuneSettings, start: Start, *, device: torch.device
) -> Callable[[], Tensor]:
    """Gives the views of the next pool images, as many as a step has labelled ones at most."""
    contract, seed = start.contract, derive_seed(training.seed, "pool of the student") >> 33
    store = pool.images.store(pool.rows, contract, seed=seed)
    size = min(training.batch_size, len(pool.rows))
    stream: Iterator[Batch] = batches(store, batch_size=size, seed=seed, start_step=0, num_steps=_ENDLESS, workers=2)
    views = ViewMaker(
        view_recipe(training.views, size=contract.size, channels=contract.channels), contract.mean, contract.std, seed
    )
    return lambda: views(next(stream).to(device), view=0)
