"""A tuning from settings: its data, its study and rungs, refused before anything is trained where they do not fit.

Trials are trained in `build/tuning_trials.py`, what they came to is written in `build/tuning_result.py`.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_ft import handover
from ssl_ft.build.labels import LabelSplit, split_budget
from ssl_ft.build.parts import duration_in_steps, pretrain_plan
from ssl_ft.build.pretraining import Pool, open_pool
from ssl_ft.build.tasks import SCORE_NAMES
from ssl_ft.build.transfer import finetune_plan, load_start
from ssl_ft.build.tuning_space import open_space
from ssl_ft.config import FinetuneSettings, PretrainSettings, TuneSettings
from ssl_ft.config.tune import LENGTHS
from ssl_ft.errors import UserError
from ssl_ft.runlog import default_folder
from ssl_ft.tuning.ladder import Ladder, default_first
from ssl_ft.tuning.space import Dimension, num_points
from ssl_ft.tuning.study import StudyPlan

_TRIALS = 20
_MOST_POINTS = 10_000
# The watcher of pretraining measures with labels only where there are more than these.
_LEAST_LABELS = 40


@dataclass(frozen=True, eq=False)
class Tuning:
    """What is tuned on what.

    Attributes:
        settings: of the stage tune.
        plan: the study.
        score: name of what is to be high.
        most_steps: steps of a whole trial; None where they differ.
        num_scored: images a score is read from.
        labelled: of finetune: encoder and labelled data.
        split: of finetune: its labels, of which test is left out here and for good.
        pool: of pretrain.
    """

    settings: TuneSettings
    plan: StudyPlan
    score: str
    most_steps: int | None
    num_scored: int
    labelled: handover.Labelled | None = None
    split: LabelSplit | None = None
    pool: Pool | None = None


@dataclass(frozen=True)
class _Lengths:
    """Steps of a trial, and between its evaluations."""

    most: int | None
    interval: int


def open_tuning(settings: TuneSettings) -> Tuning:
    """Check the space, open the data, and lay out the study.

    Raises:
        UserError: a space that does not fit, data without labels to choose on, or lengths that cannot be compared.
    """
    space = open_space(settings)
    if settings.stage == "pretrain":
        return _of_pretraining(settings, space)
    base = settings.finetune.model_copy(update=_own(settings))
    if not base.encoder:
        raise UserError("tune needs what is tuned: `ssl-ft tune finetune.encoder=runs/pretrain-...`")
    labelled = handover.open_labelled(base)
    # No trial is told which images are those of test.
    labelled = replace(labelled, roles=replace(labelled.roles, test=labelled.roles.test[:0]))
    split = split_budget(base, labelled.source, labelled.roles)
    if not len(split.val):
        raise UserError(
            f"finetune.labels={base.labels} leaves no image of val to read a score from; raise it, or "
            "finetune.val_share"
        )
    lengths = _finetune_lengths(settings, base, space, num_train=len(split.train) + len(labelled.also_indices))
    plan = _plan(settings, space, lengths, about=_about(labelled))
    score = f"val_{SCORE_NAMES[labelled.source.task]}"
    return Tuning(settings, plan, score, lengths.most, len(split.val), labelled=labelled, split=split)


def _of_pretraining(settings: TuneSettings, space: tuple[Dimension, ...]) -> Tuning:
    base = settings.pretrain.model_copy(update=_own(settings))
    objectives = [base.objective, *(choice for each in space if each.name == "objective" for choice in each.choices)]
    if "supervised" in objectives:
        raise UserError(
            "tune stage=pretrain reads its score from labels of training images, and objective=supervised trains on "
            "these very labels: what remembers them best would win. Tune a fine-tuning, which has a val of its own"
        )
    pool = open_pool(base)
    num_labels = _num_watched(pool, base)
    if num_labels <= _LEAST_LABELS:
        raise UserError(
            f"tune stage=pretrain reads its score from labels of training images, and {pool.source.location} has "
            f"{num_labels} on the pretrain.eval_images={base.eval_images} it looks at; more than {_LEAST_LABELS} of "
            "two classes or more are needed"
        )
    lengths = _pretrain_lengths(settings, base, space, num_images=len(pool.pool))
    about = {"pool": pool.pool.fingerprint()}
    plan = _plan(settings, space, lengths, about=about)
    return Tuning(settings, plan, f"{settings.score}_accuracy", lengths.most, num_labels, pool=pool)


def _own(settings: TuneSettings) -> dict[str, Any]:
    return {"seed": settings.seed, "threads": 1, "device": settings.device}


def _num_watched(pool: Pool, base: PretrainSettings) -> int:
    """Labels that pretraining would watch by; 0 where they are all of one class."""
    if pool.pool.labels is None:
        return 0
    labels = pool.pool.labels[np.asarray(pool.pool.sample(base.eval_images))]
    known = labels[labels >= 0]
    return len(known) if len(np.unique(known)) > 1 else 0


def _about(labelled: handover.Labelled) -> dict[str, Any]:
    """What a score depends on beside settings, so that no two studies are mixed."""
    source, roles, origin = labelled.source, labelled.roles, labelled.origin
    train = source.subset(np.sort(np.concatenate([roles.train, roles.val]))).fingerprint()
    also = [each.fingerprint() for each in labelled.also]
    return {"training_images": train, "also": also, "encoder": load_start(origin)[1].sha256}


def _finetune_lengths(
    settings: TuneSettings, base: FinetuneSettings, space: tuple[Dimension, ...], *, num_train: int
) -> _Lengths:
    if settings.steps is None:
        planned = finetune_plan(base, num_train=num_train)
        return _Lengths(None if _varies(settings, space) else planned.num_steps, planned.eval_every)
    smallest = min(_smallest_batch(base, space), num_train)
    per_epoch = max(1, num_train // smallest)
    if settings.steps < per_epoch:
        raise UserError(
            f"steps={settings.steps} is less than one pass over the {num_train} training images, which takes "
            f"{per_epoch} steps of {smallest}; raise steps, or the batch_size"
        )
    timed = base.model_copy(update={"epochs": 1, "min_steps": settings.steps, "batch_size": smallest})
    return _Lengths(settings.steps, finetune_plan(timed, num_train=num_train).eval_every)


def _smallest_batch(base: FinetuneSettings | PretrainSettings, space: tuple[Dimension, ...]) -> int:
    """The batch size of the trials that are evaluated least often: no rung may stand before their first time."""
    return min([base.batch_size, *map(int, _searched(space, "batch_size"))])


def _searched(space: tuple[Dimension, ...], name: str) -> list[float]:
    """Both ends of a setting's range, or its choices; none where it is not searched."""
    return [float(end) for each in space if each.name == name for end in each.ends()]


def _pretrain_lengths(
    settings: TuneSettings, base: PretrainSettings, space: tuple[Dimension, ...], *, num_images: int
) -> _Lengths:
    most = settings.steps or duration_in_steps(base.duration, num_images=num_images, batch_size=base.batch_size)
    asked = [choice for each in space if each.name == "duration" for choice in each.choices]
    if settings.steps is None:
        for duration in asked or [base.duration]:
            if duration_in_steps(duration, num_images=num_images, batch_size=base.batch_size) is None:
                where = "space.duration" if asked else "pretrain.duration"
                raise UserError(
                    f"{where}={duration!r} is measured anew by each trial, so that none could be repeated; give steps "
                    "or epochs"
                )
    timed = base.model_copy(update={"batch_size": _smallest_batch(base, space)})
    interval = pretrain_plan(timed, num_steps=most or 1, num_images=num_images).eval_every
    return _Lengths(None if _varies(settings, space) else most, interval)


def _varies(settings: TuneSettings, space: tuple[Dimension, ...]) -> bool:
    names = {*LENGTHS[settings.stage], "batch_size"}
    return settings.steps is None and any(each.name in names for each in space)


def _plan(
    settings: TuneSettings, space: tuple[Dimension, ...], lengths: _Lengths, *, about: dict[str, Any]
) -> StudyPlan:
    num_trials = settings.trials or _TRIALS
    if settings.sampler == "grid":
        points = num_points(space)
        if points > _MOST_POINTS:
            raise UserError(f"the grid has {points:,} points, and {_MOST_POINTS:,} are the most; raise a step of space")
        if settings.trials is not None and settings.trials > points:
            raise UserError(f"trials={settings.trials}: the grid has {points} points; leave trials out to try them all")
        num_trials = settings.trials or points
    ladder = _ladder(settings, space, lengths)
    kept = settings.model_dump(
        mode="json", include={"stage", "space", "sampler", "pruner", "seed", "steps", "reduction", "score"}
    )
    base = settings.pretrain if settings.stage == "pretrain" else settings.finetune
    # Without paths: the brackets of Hyperband hang on the name, and are to be the same wherever things lie.
    paths: dict[str, Any] = {
        "data": {"path", "test_path"},
        **({"encoder": True} if settings.stage == "finetune" else {}),
    }
    subject = [settings.stage, settings.steps, base.model_dump(mode="json", exclude=paths), about]
    name = f"{settings.stage}-{_digest([kept, subject, num_trials, ladder and ladder.first])}"
    return StudyPlan(
        name, space, settings.sampler, settings.pruner, num_trials, settings.seed, ladder, subject=_digest(subject)
    )


def _digest(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _ladder(settings: TuneSettings, space: tuple[Dimension, ...], lengths: _Lengths) -> Ladder | None:
    """The rungs; None without a pruner.

    Raises:
        UserError: trials of different lengths, or no evaluation before the end of one.
    """
    if settings.pruner == "none":
        return None
    if lengths.most is None:
        names = [each.name for each in space if each.name in {*LENGTHS[settings.stage], "batch_size"}]
        raise UserError(
            f"pruner={settings.pruner} holds trials against one another after as many steps, and {' and '.join(names)} "
            "in the space gives them different lengths; give all the same with steps=, or set pruner=none"
        )
    most, interval = lengths.most, lengths.interval
    base = settings.pretrain if settings.stage == "pretrain" else settings.finetune
    warmup = round(max(_searched(space, "optim.warmup"), default=base.optim.warmup) * most)
    first = settings.first_rung or default_first(most, reduction=settings.reduction, interval=interval, warmup=warmup)
    how = "pretrain.eval_every" if settings.stage == "pretrain" else "finetune.batch_size (one pass)"
    if first < interval:
        raise UserError(
            f"first_rung={first}: trials are evaluated every {interval} steps, first after the first rung; raise "
            f"first_rung, or change {how}"
        )
    if first >= most:
        raise UserError(
            f"pruner={settings.pruner}: trials of {most} steps are first judged after {first}, when nothing is left to "
            f"save; lower first_rung, change {how}, raise steps, or set pruner=none"
        )
    return Ladder(first, settings.reduction, most)


def plain_settings(tuning: Tuning) -> dict[str, Any]:
    """Settings for the run folder, data and number of trials resolved."""
    settings = tuning.settings
    plain = settings.model_dump(mode="json", exclude={"pretrain" if settings.stage == "finetune" else "finetune"})
    if tuning.labelled is not None:
        plain["finetune"]["data"] = tuning.labelled.data.model_dump(mode="json")
    return plain | {"trials": tuning.plan.num_trials, "study": tuning.plan.name}


def tuning_path(tuning: Tuning) -> Path:
    """The run folder: the one named, or one told by data and settings."""
    settings = tuning.settings
    data = settings.pretrain.data if tuning.labelled is None else tuning.labelled.data
    name = f"{Path(data.path).name}-{settings.sampler}"
    return Path(settings.out) if settings.out else default_folder("tune", name, plain_settings(tuning))


def plan_tuning(settings: TuneSettings) -> list[str]:
    """What the stage would do, in sentences."""
    tuning = open_tuning(settings)
    plan = tuning.plan
    lines = [f"{each.name}: {each.words()}" for each in plan.space]
    if all(each.kind != "float" or each.step is not None for each in plan.space):
        lines.append(f"{num_points(plan.space):,} different settings")
    steps = "steps as the settings say" if tuning.most_steps is None else f"at most {tuning.most_steps} steps each"
    lines.append(f"{plan.num_trials} trials by sampler={plan.sampler}, {steps}")
    if plan.ladder is not None:
        lines.append(f"judged after {', '.join(map(str, plan.ladder.rungs()))} steps ({plan.pruner})")
    where = "of val" if tuning.pool is None else "of training images"
    lines.append(f"score: {tuning.score} on {tuning.num_scored} labels {where}; test is not looked at")
    return [*lines, f"run: {tuning_path(tuning)}"]
