"""What compress would do, in sentences, for `--dry-run`: the model, its labels or images, and a student's size."""

from ssl_ft.artifact import ModelCard
from ssl_ft.build.feature_distilling import open_teaching
from ssl_ft.build.labels import split_budget
from ssl_ft.build.origins import load_whole
from ssl_ft.build.predecessor import check_outputs, find_predecessor
from ssl_ft.build.students import make_student
from ssl_ft.config import CompressSettings, DistillSettings
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
    before = find_predecessor(settings)
    labelled = open_labelled(before.training)
    check_outputs(before.card, labelled.source)
    split = split_budget(before.budget, labelled.source, labelled.roles)
    model, card, _ = load_whole(before.folder)
    lines = [
        _model_line(card, str(before.folder), sum(p.numel() for p in model.parameters())),
        f"{labelled.source.location}: {len(split.train)} train, {len(split.val)} val, {len(split.test)} test images; "
        "test is scored once a model",
    ]
    if settings.method == "distill":
        student = make_student(distill, card, model, seed=settings.seed)
        lines.append(f"student: {student.start.spec.name}, {student.num_parameters:,} parameters")
    return lines


def _model_line(card: ModelCard, location: str, num_parameters: int) -> str:
    return f"model: {location}, {card.spec.name}, {num_parameters:,} parameters"
