"""The model that compress starts from, and the labels of its run, which tells what settings leave open."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_ft.artifact import ModelCard, find_model, read_card
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import LabelSplit
from ssl_ft.config import CompressSettings, FinetuneSettings
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.result import Result


@dataclass(frozen=True, eq=False)
class Predecessor:
    """A classifier and the labels it may be made smaller with.

    Attributes:
        folder: the model folder.
        card: what that says.
        settings: of compress, with data, and all that the labels are drawn by, in place.
        training: how a student or a pruned model is trained.
        budget: by which labels are drawn and val is taken from them: as the model's run did, seed and all.
    """

    folder: Path
    card: ModelCard
    settings: CompressSettings
    training: FinetuneSettings
    budget: FinetuneSettings


def find_predecessor(settings: CompressSettings) -> Predecessor:
    """What `model=` means, and which labels may be used.

    Raises:
        UserError: no classifier there, or its run does not tell of data or labels that are not named.
    """
    folder = find_model(settings.model, kind="classifier", setting="model")
    told = _told_settings(folder)
    data, labels = settings.data or parent_data(folder), settings.labels or told.get("labels")
    if labels is None:
        raise UserError(
            f"{folder} does not lie in its run folder, so it is not known how many labels it was trained on; name the "
            "budget with labels="
        )
    draw = settings.draw if settings.draw is not None else int(told.get("draw", 0))
    # A run of compress tells by which seed the first of its line drew.
    told_seed = told.get("label_seed", told.get("seed", settings.seed))
    label_seed = settings.label_seed if settings.label_seed is not None else int(told_seed)
    finetune = settings.finetune
    if "val_share" not in finetune.model_fields_set:
        share = told.get("finetune", told).get("val_share", finetune.val_share)
        finetune = finetune.model_copy(update={"val_share": share})
    given = {"data": data, "labels": labels, "draw": draw}
    own = settings.model_copy(update={**given, "label_seed": label_seed, "finetune": finetune})
    plain = {key: getattr(settings, key) for key in ("seed", "device", "threads", "out")}
    training = finetune.model_copy(update={**given, **plain, "encoder": str(folder)})
    return Predecessor(folder, read_card(folder)[0], own, training, training.model_copy(update={"seed": label_seed}))


def check_outputs(card: ModelCard, source: Source) -> None:
    """Refuse data whose labels are not those the model tells apart.

    Raises:
        UserError: another task, or other classes or targets.
    """
    names = source.class_names if source.task == "classes" else source.target_names
    if source.task != card.task:
        raise UserError(
            f"the model is of task={card.task}, and data={source.location} was opened with data.task={source.task}; "
            "they must be the same"
        )
    if names != card.output_names:
        raise UserError(
            f"data={source.location} has {_few(names)} to tell apart, the model {_few(card.output_names)}: these must "
            "be the same, in the same order; name the data it was trained for"
        )


def _few(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"


def earlier_labels(folder: Path, card: ModelCard, source: Source, split: LabelSplit) -> int:
    """Labels the model was trained on beside those of the split.

    Where its run drew the very same images, those are counted once; else all that the model was trained on, as its
    card tells.
    """
    result = folder.parent / "result.json"
    try:
        before = Result.model_validate_json(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return card.num_labels
    seen = {used.role: used.fingerprint for used in before.data}
    own = {"train": split.train, "val": split.val}
    if any(len(rows) and seen.get(role) != source.subset(rows).fingerprint() for role, rows in own.items()):
        return card.num_labels
    return before.labels_used.earlier + before.labels_used.also


def _told_settings(folder: Path) -> dict[str, Any]:
    """Settings of the run that made the model; empty where it does not tell."""
    try:
        told = json.loads((folder.parent / "manifest.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
