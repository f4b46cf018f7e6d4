"""The search space of tune against the settings of the tuned stage: names, types and both ends of every range.

A trial's settings are made here too, from those of the recipe and the values chosen for it.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from ssl_ft.config import FinetuneSettings, PretrainSettings, TuneSettings
from ssl_ft.errors import UserError
from ssl_ft.recipe import checked, put, setting_types, unknown_setting
from ssl_ft.tuning.space import Dimension, plain_words

StageSettings = FinetuneSettings | PretrainSettings
CLASSES: dict[str, type[FinetuneSettings] | type[PretrainSettings]] = {
    "finetune": FinetuneSettings,
    "pretrain": PretrainSettings,
}
# What cannot be searched, with the reason; a section stands for all its settings.
_IMAGES = "it decides which images a score is read from, and scores of different images cannot be compared"
_SPEED = "it changes how fast a trial is, or where, not how good"
_NOT_SEARCHED: dict[str, dict[str, str]] = {
    "finetune": {
        **dict.fromkeys(("seed", "data", "labels", "draw", "val_share", "encoder", "source"), _IMAGES),
        **dict.fromkeys(("device", "threads", "out"), _SPEED),
        "also": "further sources are named, not searched",
        "also_classes": "further sources are named, not searched",
        "tta": "it concerns test alone, which a trial does not see",
    },
    "pretrain": {
        **dict.fromkeys(("seed", "data", "eval_images", "eval_every"), _IMAGES),
        **dict.fromkeys(
            ("device", "threads", "out", "devices", "slurm", "trackers", "save_every", "log_every", "compile",
             "sharding", "activation_checkpointing", "channels_last"),
            _SPEED,
        ),
    },
}  # fmt: skip
# Combinations of choices that are tried out beforehand; of more, each choice by itself.
_MOST_TRIED = 256
_MOST_SENTENCES = 8


def open_space(settings: TuneSettings) -> tuple[Dimension, ...]:
    """The ranges, in the order of their names.

    Raises:
        UserError: every mistake, one a line: names that are no settings, ranges of another type, ends or choices that
            the stage's own settings refuse.
    """
    if not settings.space:
        raise UserError(
            "space names no setting to search; write for example space.optim.rate='{type: float, low: 1e-4, high: "
            "1e-1, log: true}', or a recipe with a section space"
        )
    space, problems = [], []
    for name, own in sorted(settings.space.items()):
        dimension = Dimension(
            name,
            own.type,
            own.low or 0.0,
            own.high or 0.0,
            own.step,
            own.log,
            _plain(settings.stage, name, own.choices or ()),
        )
        sentence = _name_problem(settings.stage, name) or _type_problem(settings.stage, dimension)
        if sentence:
            problems.append(f"space.{name}: {sentence}")
        else:
            space.append(dimension)
    problems += [] if problems else list(_refused(settings, space))
    if problems:
        more = len(problems) - _MOST_SENTENCES
        shown = [*problems[:_MOST_SENTENCES], *([f"and {more} more"] if more > 0 else [])]
        raise UserError("\n  ".join(["the search space does not fit:", *shown]))
    return tuple(space)


def trial_tree(settings: TuneSettings, values: dict[str, Any]) -> dict[str, Any]:
    """Plain settings of the stage for one trial, as a recipe would hold them: what was given, and what was chosen."""
    base = settings.pretrain if settings.stage == "pretrain" else settings.finetune
    tree: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True)
    for name, value in values.items():
        put(tree, name, copy.deepcopy(value))
    tree |= {"seed": settings.seed, "threads": 1, "device": settings.device}
    if settings.steps is not None and settings.stage == "pretrain":
        tree["duration"] = f"{settings.steps} steps"
    elif settings.steps is not None:
        tree |= {"epochs": 1, "min_steps": settings.steps}
    return tree


def trial_settings(settings: TuneSettings, values: dict[str, Any]) -> StageSettings:
    """Checked settings of one trial.

    Raises:
        UserError: the values do not go together.
    """
    made, problems = checked(CLASSES[settings.stage], trial_tree(settings, values))
    if made is None:
        raise UserError("; ".join(problems))
    return made


def _plain(stage: str, name: str, choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Choices as a recipe would hold them; numbers that YAML takes for texts, such as 1e-4, as the numbers they are."""
    types = setting_types(CLASSES[stage], name)
    is_number = float in types and str not in types

    def plain(choice: Any) -> Any:
        if isinstance(choice, str) and is_number:
            with suppress(ValueError):
                return float(choice)
        return choice

    return tuple(map(plain, choices))


def _name_problem(stage: str, name: str) -> str:
    reasons = _NOT_SEARCHED[stage]
    reason = reasons.get(name) or reasons.get(name.partition(".")[0])
    if reason:
        return f"cannot be searched: {reason}"
    return unknown_setting(CLASSES[stage], name)


def _type_problem(stage: str, own: Dimension) -> str:
    """What is wrong with the range's type; empty where numbers are searched among numbers, or choices are listed."""
    types = setting_types(CLASSES[stage], own.name)
    if own.kind == "categorical" or (own.kind == "float" and float in types):
        return ""
    if own.kind == "int" and types & {int, float}:
        return ""
    if own.kind == "float" and int in types:
        return "takes whole numbers; write type: int"
    literals = [str(value) for each in types if get_origin(each) is Literal for value in get_args(each)]
    example = ", ".join(literals) if literals else "false, true" if bool in types else "a, b"
    return f"takes no range of numbers; write type: categorical with choices: [{example}]"


def _refused(settings: TuneSettings, space: list[Dimension]) -> Iterator[str]:
    """A sentence for each end of a range, and each choice, that the stage's settings refuse."""
    cls = CLASSES[settings.stage]
    first = {each.name: each.ends()[0] for each in space}
    _, unfit = checked(cls, trial_tree(settings, {}))
    if unfit:
        yield from unfit
        return
    told = set()
    for values in _tried(space, first):
        _, problems = checked(cls, trial_tree(settings, values))
        if problems:
            sentence = _about(problems, values)
            if sentence not in told:
                told.add(sentence)
                yield sentence


def _tried(space: list[Dimension], first: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Values to try: each end and choice with the first of the others, then all choices with one another."""
    for each in space:
        for value in each.ends():
            yield {**first, each.name: value}
    listed = [each for each in space if each.kind == "categorical"]
    combined = list(itertools.islice(itertools.product(*(each.choices for each in listed)), _MOST_TRIED + 1))
    if len(combined) <= _MOST_TRIED:
        for choices in combined:
            yield {**first, **dict(zip((each.name for each in listed), choices, strict=True))}


def _about(problems: list[str], values: dict[str, Any]) -> str:
    """The first problem, with the values it is about: the setting it names, or all where it names none of them."""
    problem = problems[0]
    if any(problem.startswith((f"{name}:", f"{name}.")) for name in values):
        return f"space.{problem}"
    return f"space with {', '.join(f'{name}={plain_words(value)}' for name, value in values.items())}: {problem}"
