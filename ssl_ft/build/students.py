"""The student of a distillation: its architecture and input by settings and teacher, and the weights it starts from."""

import copy
from dataclasses import dataclass, replace

from torch import nn

from ssl_ft.artifact import ModelCard
from ssl_ft.build.draft import Start, with_head
from ssl_ft.build.origins import Origin, find_origin, load_origin
from ssl_ft.config import DistillSettings, SourceSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder, family
from ssl_ft.models.fit import check_input
from ssl_ft.result import Parent
from ssl_ft.seeding import derive_seed

_DEFAULT = "resnet10t"


@dataclass(frozen=True, eq=False)
class Student:
    """Who learns.

    Attributes:
        start: the encoder it starts from, with its input.
        origin: where its weights come from, and what to record of that; None where they are fresh.
        num_parameters: with a head of as many outputs as the teacher's; of an encoder without.
    """

    start: Start
    origin: tuple[Origin, Parent] | None
    num_parameters: int


def make_student(settings: DistillSettings, card: ModelCard, teacher: nn.Module, *, seed: int) -> Student:
    """The student of a teacher, which is a classifier or an encoder.

    Args:
        settings: which architecture, and where its weights come from.
        card: the teacher's.
        teacher: the teacher itself, to be counted.
        seed: of fresh weights.

    Raises:
        UserError: no such architecture or weights, another number of channels, an input it does not take, or more
            parameters than the teacher has.
    """
    if settings.encoder is None:
        spec = _spec(settings, card.spec)
        encoder = build_encoder(spec, seed=derive_seed(seed, "student") >> 1, section="distill")
        check_input(encoder, spec, setting="distill.student", size_setting="distill.size")
        contract = card.contract if settings.size is None else replace(card.contract, size=settings.size)
        start, origin = Start(encoder.eval(), spec, contract), None
    else:
        found = find_origin(settings.encoder, _source(settings, card), setting="distill.encoder")
        if found.folder is None:
            # Weights of others say nothing of 16-bit files, and some nothing of mean and std: the teacher's serve.
            contract = replace(found.card.contract, white_level=card.contract.white_level)
            if found.is_measured:
                contract = replace(contract, mean=card.contract.mean, std=card.contract.std)
            found = replace(found, card=replace(found.card, contract=contract), is_measured=False)
        _check_encoder(settings, found, card)
        encoder, parent = load_origin(found)
        start, origin = Start(encoder, found.card.spec, found.card.contract), (found, parent)
    outputs = len(card.output_names)
    whole = with_head(copy.deepcopy(start.encoder), num_classes=outputs, seed=0) if outputs else start.encoder
    count, most = (sum(p.numel() for p in model.parameters()) for model in (whole, teacher))
    if count > most and settings.kind != "self":
        raise UserError(
            f"distill.student={start.spec.name} has {count:,} parameters, more than the {most:,} of its teacher "
            f"{card.spec.name}: it would not be made smaller. Choose a smaller student, or narrow it with distill.args="
        )
    return Student(start, origin, count)


def _spec(settings: DistillSettings, teacher: EncoderSpec) -> EncoderSpec:
    """The architecture that is built anew; what the settings leave open and the teacher has too is the teacher's."""
    if settings.kind == "self":
        return teacher
    name = settings.student or _DEFAULT
    own, other = family(name, setting="distill.student="), family(teacher.name)
    stem, patch = settings.stem_stride, settings.patch_size
    if stem is None and {own, other} <= {"resnet", "convnext"}:
        stem = teacher.stem_stride  # type: ignore[assignment]  # it was one of these when the teacher was built
    if patch is None and own == other == "vit":
        patch = teacher.patch_size
    return EncoderSpec(name, teacher.channels, settings.size or teacher.size, stem, patch, dict(settings.args))


def _source(settings: DistillSettings, card: ModelCard) -> SourceSettings:
    """What weights of others are told of their architecture and input; one of ours knows by itself."""
    assert settings.encoder is not None, "only called with weights"
    is_file = settings.encoder.endswith(".safetensors")
    if not is_file and not settings.encoder.startswith("timm:"):
        return SourceSettings()
    contract, is_own = card.contract, settings.kind == "self"
    tree: dict[str, object] = {
        "size": settings.size or contract.size,
        "channels": contract.channels,
        "stem_stride": card.spec.stem_stride if is_own else settings.stem_stride,
        "patch_size": card.spec.patch_size if is_own else settings.patch_size,
        "args": card.spec.args if is_own else settings.args,
    }
    if is_file:
        tree["name"] = card.spec.name if is_own else settings.student or _DEFAULT
    # Of other numbers of channels timm knows no mean; those measured for the teacher serve.
    more = {} if contract.channels == 3 else {"mean": contract.mean, "std": contract.std}
    return SourceSettings.model_validate({**tree, **more})


def _check_encoder(settings: DistillSettings, found: Origin, card: ModelCard) -> None:
    spec = found.card.spec
    own = (card.spec.name, card.spec.args, card.spec.cut)
    if settings.kind == "self" and (spec.name, spec.args, spec.cut) != own:
        cut = " with the layers that pruning left it" if card.spec.cut is not None else ""
        raise UserError(
            f"distill.encoder={settings.encoder} is a {spec.name}, and kind=self has the model's own architecture, "
            f"{card.spec.name}{cut}: give weights of that, or take kind=soft"
        )
    if settings.student not in (None, spec.name):
        raise UserError(
            f"distill.student={settings.student}: distill.encoder={settings.encoder} is a {spec.name}; leave one "
            "of them out"
        )
    if found.card.contract.white_level != card.contract.white_level:
        raise UserError(
            f"distill.encoder={settings.encoder} takes {found.card.contract.white_level} of 16-bit images for white, "
            f"its teacher {card.contract.white_level}: both are to see the same images; leave it out"
        )
    if spec.channels != card.contract.channels:
        raise UserError(
            f"distill.encoder={settings.encoder} takes {spec.channels} channels, its teacher "
            f"{card.contract.channels}: both are to see the same images; give weights for as many channels, or "
            "leave it out"
        )
