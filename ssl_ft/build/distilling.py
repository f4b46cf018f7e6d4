"""Compress by method=distill: a student learns a classifier's outputs, beside the very same student without a teacher.

Distilling of encoders, which needs no label, is `feature_distilling.py`; losses and modules are in `compress/`.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ssl_ft.artifact import ModelCard
from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.draft import Start, with_head
from ssl_ft.build.origins import record_start
from ssl_ft.build.pairs import Contender
from ssl_ft.build.selftraining import Unlabelled
from ssl_ft.build.shipping import check_can_ship
from ssl_ft.build.students import Student, make_student
from ssl_ft.build.teaching import distilled, num_images, open_pool, soft_targets, teacher_of
from ssl_ft.build.transfer import Trained, finetune_plan, train_classifier
from ssl_ft.compress.depth_heads import DepthHeads, earlier_widths
from ssl_ft.compress.distill_losses import hard_target_loss
from ssl_ft.compress.distilled import Distilled, Teach
from ssl_ft.config import DistillSettings, FinetuneSettings
from ssl_ft.errors import UserError
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import say
from ssl_ft.transfer.strategy import Prepared, scaled_groups


def distill(work: Work) -> Compressed:
    """A student of the model.

    Raises:
        UserError: another task than classes, or a student that cannot be had.
    """
    settings = work.settings.distill or DistillSettings()
    check_teaches_classes(work.card, model=work.settings.model)
    seed = work.training.seed
    student = make_student(settings, work.card, work.model, seed=seed)
    whole = with_head(copy.deepcopy(student.start.encoder), num_classes=len(work.card.output_names), seed=0)
    check_can_ship(whole.eval(), student.start.contract)
    if student.origin is not None:
        record_start(work.run, *student.origin)
    pool = open_pool(settings.pool, work, setting="distill.pool")
    # A fresh encoder moves at the head's rate, one that was trained before at its share of it.
    strategy = "scratch" if student.origin is None else "full"
    training = work.training.model_copy(update={"strategy": strategy})
    num_steps = finetune_plan(training, num_train=num_images(work, pool)).num_steps
    train = partial(
        train_classifier, training, student.start, work.images, work.split, device=work.device, num_steps=num_steps,
        should_stop=work.should_stop,
    )  # fmt: skip
    say(f"== a student, {student.start.spec.name}, of {student.num_parameters:,} parameters")
    taught, extend = _teaching(settings, training, work, student, pool)
    with ProgressLine("student", total=num_steps) as line:
        trained = train(taught=taught, extend=extend, on_row=_shown(line, log=work.on_row))
    pair = None
    if settings.baseline and not work.should_stop():
        say("== the same student without a teacher")
        with ProgressLine("student alone", total=num_steps) as line:
            plain = train(on_row=_shown(line))  # its rows are not kept: those of the run are the student's
        contract = student.start.contract
        pair = Contender("student", trained, contract), Contender("student alone", plain, contract)
    return _made(work, student, trained, pair)


def check_teaches_classes(card: ModelCard, *, model: str) -> None:
    """Refuse to distill a model of another task.

    Raises:
        UserError: as said.
    """
    if card.task != "classes":
        raise UserError(
            f"method=distill teaches classes alone, and {model} is a model of task={card.task}: its outputs are no "
            "shares for a temperature to soften. `ssl-ft finetune` trains a small encoder on its labels"
        )


def _shown(
    line: ProgressLine, *, log: Callable[[int, dict[str, float]], None] = lambda step, row: None
) -> Callable[[int, dict[str, float]], None]:
    """Rows into the log, and what matters of them beside the bar."""

    def on_row(step: int, row: dict[str, float]) -> None:
        log(step, row)
        line.update(step, " ".join(f"{k} {v:.3f}" for k, v in row.items() if k in ("loss", "val_accuracy")))

    return on_row


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
    teach: Teach = hard_target_loss if settings.kind == "hard" else soft_targets(settings.temperature)

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
        return distilled(
            prepared, work, training, contract=start.contract, share=settings.mix, teach=teach,
            teacher=teacher_of(work, start.contract) if has_teacher else None, pool=pool,
            depth=heads[-1] if heads else None, depth_weight=settings.depth_weight,
        )  # fmt: skip

    return taught, extend


def _blank(start: Start) -> Tensor:
    return torch.zeros(1, start.contract.channels, start.contract.size, start.contract.size)
