"""Assembles an adaptation from settings: source and target matched by class, and what each method does with the target.

What `coral` and `adversarial` add to training is in `build/aligning.py`, the pretraining that `continue` goes on with
in `build/continuing.py`, formulas in `transfer/`. The target's labels are looked at but to number those of its test
images.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.build.aligning import alignment
from ssl_ft.build.data import limited, open_data, pool_of, roles_of
from ssl_ft.build.draft import Start
from ssl_ft.build.labels import Indices, LabelledImages, LabelSplit
from ssl_ft.build.pairs import Contender
from ssl_ft.build.tasks import check_classes
from ssl_ft.build.transfer import Trained, finetune_plan, train_classifier
from ssl_ft.config import AdaptSettings, DataSettings
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.models.batchnorm import has_batch_statistics
from ssl_ft.runlog import say
from ssl_ft.transfer.batch_statistics import adapt_batch_norm

_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Target:
    """The images of the other kind.

    Attributes:
        source: all of them, labels numbered as the labelled source's classes.
        data: how they are read.
        unlabelled: those that may be looked at, test images left out.
        test: int64 indices into `source`, scored in the end.
    """

    source: Source
    data: DataSettings
    unlabelled: LabelledImages
    test: Indices


def open_target(settings: AdaptSettings, source: Source, *, folder: Path) -> Target:
    """Open the target and match its classes with the source's by name.

    Raises:
        UserError: no target named, no test labels, or a class of the test images that the source lacks.
    """
    data = settings.target
    if data is None:
        raise UserError("target= is missing: name the images of the other kind, whose test labels score the result")
    check_classes(data, stage="adapt")
    target = open_data(data)
    test = _test_part(target, data)
    assert target.labels is not None, "roles need labels"
    number = {name: place for place, name in enumerate(source.class_names)}
    strangers = sorted({target.class_names[c] for c in target.labels[test].tolist()} - number.keys())
    if strangers:
        raise UserError(
            f"target={target.location}: its test images are also of class {strangers[0]!r}, which {source.location} "
            f"does not have (its classes are {', '.join(source.class_names[:10])}); a classifier adapted from there "
            "never says that. Leave these images out, or name classes alike"
        )
    places = np.array([number.get(name, -1) for name in target.class_names], np.int64)
    labels = np.where(target.labels >= 0, places[target.labels], -1).astype(np.int64)
    pool, _ = pool_of(target, data)
    return Target(
        replace(target, labels=labels, class_names=source.class_names),
        data,
        LabelledImages(pool, data, np.arange(len(pool)), folder / "target"),
        test,
    )


def _test_part(target: Source, data: DataSettings) -> NDArray[np.int64]:
    """Labelled images of the split that scores; of a target without splits the part that is drawn for it.

    Other labels of the target are not asked for: it has none where it is adapted to.
    """
    if target.labels is None or target.splits is None or data.test_split is None:
        return roles_of(target, data).test
    test = np.flatnonzero((target.splits == data.test_split) & (target.labels >= 0))
    return test if len(test) else roles_of(target, data).test  # which says what is wrong


def check_method(settings: AdaptSettings, start: Start) -> None:
    """Refuse what the encoder does not have before anything is trained.

    Raises:
        UserError: batch norm to adapt, and the encoder has none.
    """
    if settings.method == "batch_norm" and not has_batch_statistics(start.encoder):
        raise UserError(
            f"method=batch_norm: {start.spec.name} has no batch norm, so there are no statistics to take on the "
            "target; choose method=coral, adversarial or continue, or an encoder with batch norm such as a ResNet"
        )


def train_pair(
    settings: AdaptSettings,
    start: Start,
    images: LabelledImages,
    split: LabelSplit,
    target: Target,
    *,
    new_start: Start,
    device: torch.device,
    should_stop: Callable[[], bool],
) -> tuple[Contender, Contender]:
    """The adapted classifier and its baseline: the same training, seed and all, on the labelled source alone.

    Both are stopped and chosen on val images of the source: the target's labels choose nothing.

    Args:
        settings: method and training.
        start: the encoder.
        images: the labelled source.
        split: its train and val.
        target: the images of the other kind.
        new_start: for `continue` the encoder that pretraining on the target's images left; else the same.
        device: where to compute.
        should_stop: whether the person wants to stop.
    """
    train = partial(train_classifier, settings, images=images, split=split, device=device, should_stop=should_stop)
    say("== training on the source alone")
    plain = train(start)
    say(f"== {settings.method}")
    if settings.method == "batch_norm":
        adapted = with_target_statistics(settings, plain, start, target, device=device)
    elif settings.method == "continue":
        adapted = train(new_start)
    else:
        steps = finetune_plan(settings, num_train=len(split.train)).num_steps
        adapted = train(start, extend=alignment(settings, start, target.unlabelled, num_steps=steps, device=device))
        # Each side was normalised by its own batches while training; in use, there is the target alone.
        if has_batch_statistics(adapted.model):
            adapted = with_target_statistics(settings, adapted, start, target, device=device)
    return (
        Contender(settings.method, adapted, new_start.contract),
        Contender("source alone", plain, start.contract),
    )


def with_target_statistics(
    settings: AdaptSettings, trained: Trained, start: Start, target: Target, *, device: torch.device
) -> Trained:
    """A copy of the classifier whose batch norms have the statistics of the target's unlabelled images."""
    model = copy.deepcopy(trained.model).to(device)
    wanted = target.data.model_copy(update={"limit": settings.statistics_images, "split_seed": settings.seed})
    rows = limited(np.arange(len(target.unlabelled.source)), wanted)
    pixels = target.unlabelled.inputs(rows, start.contract).pixels

    def blocks() -> Iterator[Tensor]:
        for first in range(0, len(pixels), _BLOCK):
            yield start.contract.normalise(torch.from_numpy(pixels[first : first + _BLOCK]).to(device))

    adapt_batch_norm(model, blocks)
    return replace(trained, model=model.to("cpu").eval())
