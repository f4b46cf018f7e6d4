"""What compress would do, in sentences, for `--dry-run`: the model, its labels or images, and what becomes of it."""

import torch
from torch import nn

from ssl_ft.artifact import ModelCard
from ssl_ft.build.auditing import refuse_without_test
from ssl_ft.build.distilling import check_teaches_classes
from ssl_ft.build.feature_distilling import open_teaching
from ssl_ft.build.labels import LabelSplit, split_budget
from ssl_ft.build.narrowing import goal_of, shears_of
from ssl_ft.build.origins import load_whole
from ssl_ft.build.predecessor import check_outputs, find_predecessor
from ssl_ft.build.pruning import check_names
from ssl_ft.build.quantizing import decide
from ssl_ft.build.recovery import check_can_teach
from ssl_ft.build.students import make_student
from ssl_ft.build.transfer import finetune_plan
from ssl_ft.compress.prune_weights import prunable_weights
from ssl_ft.compress.prune_widths import find_widths
from ssl_ft.compress.quantize_extras import require_quantizers
from ssl_ft.config import CompressSettings, DistillSettings, FinetuneSettings, QuantizeSettings
from ssl_ft.config.prune import PruneSettings
from ssl_ft.export.extras import require_onnx
from ssl_ft.handover import open_labelled
from ssl_ft.models.encoders import build_encoder


def plan_compression(settings: CompressSettings) -> list[str]:
    """The plan.

    Raises:
        UserError: what the stage itself would refuse before it trains.
    """
    distill = settings.distill or DistillSettings()
    if settings.method == "distill" and distill.kind == "features":
        teaching = open_teaching(settings)
        # Counted on fresh weights: a plan fetches nothing.
        encoder = build_encoder(teaching.origin.card.spec, seed=0)
        student = make_student(distill, teaching.origin.card, encoder, seed=settings.seed)
        return [
            _model_line(teaching.origin.card, teaching.origin.location, sum(p.numel() for p in encoder.parameters())),
            f"student: {student.start.spec.name}, {student.num_parameters:,} parameters",
            f"{teaching.source.location}: {len(teaching.pool)} images without a look at labels",
        ]
    require_onnx(what="compress")
    before = find_predecessor(settings)
    labelled = open_labelled(before.training)
    check_outputs(before.card, labelled.source)
    split = split_budget(before.budget, labelled.source, labelled.roles)
    refuse_without_test(labelled.source, split)
    model, card, _ = load_whole(before.folder)
    lines = [
        _model_line(card, str(before.folder), sum(p.numel() for p in model.parameters())),
        f"{labelled.source.location}: {len(split.train)} train, {len(split.val)} val, {len(split.test)} test images; "
        "test is scored once a model",
    ]
    if settings.method == "distill":
        check_teaches_classes(card, model=settings.model)
        student = make_student(distill, card, model, seed=settings.seed)
        lines.append(f"student: {student.start.spec.name}, {student.num_parameters:,} parameters")
    elif settings.method == "prune":
        pruning = settings.prune or PruneSettings()
        check_can_teach(pruning, card, model=settings.model)
        lines += _pruning_lines(pruning, model, card, before.training, num_train=len(split.train))
    else:
        lines += _quantizing_lines(settings.quantize or QuantizeSettings(), model, card, before.training, split)
    return lines


def _pruning_lines(
    settings: PruneSettings, model: nn.Module, card: ModelCard, training: FinetuneSettings, *, num_train: int
) -> list[str]:
    check_names(model, settings.keep)
    if settings.kind == "weights":
        prunable_weights(model, keep=settings.keep)
        aim = f"{settings.sparsity:.4g} of the weights become zero"
    else:
        example = torch.zeros(1, card.contract.channels, card.contract.size, card.contract.size)
        find_widths(model, shears_of(settings), example=example)
        goal, target = goal_of(settings)
        aim = {
            "sparsity": f"{target:.4g} of each layer's {settings.kind} go",
            "macs": f"{settings.kind} go until {target:.4g} of the multiply-accumulates are left",
            "latency": f"{settings.kind} go until an image takes {target:.4g} of the time it took",
        }[goal]
    num_steps = finetune_plan(training, num_train=num_train).num_steps
    rounds = f"in {settings.steps} rounds, " if settings.steps > 1 else ""
    lines = [f"prune: {aim}, {rounds}with {num_steps} steps of training in all"]
    if settings.pool is not None:
        lines.append(f"prune.pool={settings.pool.path}: more steps where it holds more images than train")
    return lines


def _quantizing_lines(
    settings: QuantizeSettings, model: nn.Module, card: ModelCard, training: FinetuneSettings, split: LabelSplit
) -> list[str]:
    require_quantizers()
    lines = list[str]()
    job = decide(settings, model, name=card.spec.name, note=lines.append)
    needs = {
        "dynamic": "no images are needed",
        "weight_only": "no images are needed",
        "static": f"ranges are read from up to {settings.images} training images",
        "qat": f"{finetune_plan(training, num_train=len(split.train)).num_steps} steps of training",
    }[job.kind]
    return [*lines, f"quantize: {job.kind}, {needs}"]


def _model_line(card: ModelCard, location: str, num_parameters: int) -> str:
    return f"model: {location}, {card.spec.name}, {num_parameters:,} parameters"
