"""One cell of a comparison: choose hyper-parameters inside the budget, train on all of it, predict test once.

A cell is a pure function of its key, the settings and the data: it touches no run folder and no label beside its
budget's, and its random numbers come from the key alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.build.draft import Start
from ssl_ft.build.grids import GRIDS, candidates, words
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.build.origins import Origin
from ssl_ft.build.solved_head import pool_statistics
from ssl_ft.build.transfer import Trained, load_start, train_classifier
from ssl_ft.config import CompareSettings, FinetuneSettings
from ssl_ft.data.splits import Roles, carve_val, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import Budget, Cell, CellKey
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.seeding import derive_seed

Indices = NDArray[np.int64]


class Stopped(Exception):  # noqa: N818 - no error, the person's wish
    """Training was stopped before the cell was done."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells of one encoder share, read once by a process.

    Attributes:
        start: the encoder, with what the exact probe standardises by.
        images: the labelled source.
        roles: of its images; test is the part that is scored.
        test: uint8 [N, C, size, size], test images as the encoder takes them.
        device: where to compute.
    """

    start: Start
    images: LabelledImages
    roles: Roles
    test: NDArray[np.uint8]
    device: torch.device


def build_bench(
    origin: Origin, images: LabelledImages, roles: Roles, *, device: torch.device, seed: int
) -> tuple[Bench, Indices]:
    """The bench of an encoder, and the indices of the test images on it; damaged ones are left out.

    Raises:
        UserError: images that break the encoder's contract, or too many damaged ones.
    """
    start, _ = load_start(origin)
    inputs = images.inputs(roles.test, start.contract)
    statistics = pool_statistics(start, images, device=device, seed=seed)
    return Bench(replace(start, statistics=statistics), images, roles, inputs.pixels, device), inputs.indices


def budget_of(key: CellKey, roles: Roles, labels: Indices, *, seed: int, class_names: tuple[str, ...]) -> Indices:
    """The labelled images of a cell, int64: the same for every strategy, seed and encoder, nested over budgets.

    Raises:
        UserError: a class has too few labels.
    """
    if isinstance(key.budget, str):
        return np.sort(np.concatenate([roles.train, roles.val]))
    return label_budget(labels, roles.train, per_class=key.budget, draw=key.draw, seed=seed, class_names=class_names)


def compute_cell(
    settings: CompareSettings, key: CellKey, bench: Bench, *, should_stop: Callable[[], bool] = lambda: False
) -> Cell:
    """Choose, train, predict.

    Raises:
        UserError: the budget cannot be paid or read.
        Stopped: `should_stop()` said so.
    """
    began = time.monotonic()
    images, names = bench.images, bench.images.source.class_names
    budget = budget_of(key, bench.roles, images.labels, seed=settings.seed, class_names=names)
    readable = _readable(budget, bench)
    train, val = carve_val(
        images.labels, readable, share=settings.finetune.val_share, seed=settings.seed, draw=key.draw
    )
    base = settings.finetune.model_copy(
        update={
            # The same seed for every strategy and budget, so that they share what luck there is.
            "seed": derive_seed(settings.seed, "cell", key.draw, key.seed) % 2**31,
            "draw": key.draw,
            "labels": key.budget,
        }
    )
    choice = _choose(base, key.strategy, bench, LabelSplit(train, val, val[:0]), should_stop)
    final = choice.trained
    if choice.needs_refit:
        best = choice.trained
        everything = LabelSplit(readable, val[:0], val[:0])
        final = train_classifier(
            choice.settings, bench.start, images, everything, device=bench.device,
            stop_at=best.step, num_steps=best.num_steps, should_stop=should_stop,
        )  # fmt: skip
        if should_stop():
            raise Stopped
    logits = compute_outputs(final.model, bench.test, bench.start.contract, device=bench.device, batch_size=256)
    shares = torch.from_numpy(logits).softmax(1)
    return Cell(
        predictions=shares.argmax(1).numpy().astype(np.int16),
        confidences=shares.amax(1).numpy().astype(np.float16),
        chosen=choice.words,
        val_loss=choice.trained.val_loss,
        val_accuracy=choice.trained.val_accuracy,
        steps=final.step,
        num_trained=final.num_trained,
        num_labels=len(budget),
        seconds=round(time.monotonic() - began, 3),
        train_seconds=final.seconds,
        peak_memory_mb=round(max(final.peak_memory_mb, choice.trained.peak_memory_mb), 1),
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """The candidate chosen, and whether it is still to be trained on all labels of the budget."""

    settings: FinetuneSettings
    words: tuple[str, ...]
    trained: Trained
    needs_refit: bool


def _choose(
    base: FinetuneSettings, strategy: str, bench: Bench, split: LabelSplit, should_stop: Callable[[], bool]
) -> _Choice:
    """The candidate of the lowest val log-loss; the first where there is nothing to choose on."""
    tried = candidates(base, strategy)
    if not len(split.val):
        tried = tried[:1]
    found: list[_Choice] = []
    for settings, candidate in zip(tried, GRIDS[strategy], strict=False):
        try:
            trained = train_classifier(
                settings, bench.start, bench.images, split, device=bench.device, should_stop=should_stop
            )
        except UserError:  # it diverged: the others may not
            if not found and settings is tried[-1]:
                raise
            continue
        if should_stop():
            raise Stopped
        # A solver fits on val as well, and without val all labels were trained on at once.
        needs_refit = trained.num_steps > 0 and len(split.val) > 0
        found.append(_Choice(settings, words(candidate, settings), trained, needs_refit))
    return min(found, key=lambda each: np.inf if each.trained.val_loss is None else each.trained.val_loss)


def _readable(budget: Indices, bench: Bench) -> Indices:
    """The budget without images that cannot be read, which would be replaced by others under their labels."""
    images = bench.images
    found = images.inputs(budget, bench.start.contract, max_damaged_share=1.0).indices
    lost = set(images.labels[budget].tolist()) - set(images.labels[found].tolist())
    if lost:
        name = images.source.class_names[min(lost)]
        raise UserError(f"{images.source.location}: not one labelled image of class {name!r} can be read; mend some")
    return found


def budget_sizes(
    budgets: tuple[Budget, ...], roles: Roles, labels: Indices, *, seed: int, class_names: tuple[str, ...]
) -> dict[Budget, int]:
    """Labels of each budget, all classes together.

    Raises:
        UserError: a class has too few labels for one of them.
    """
    keys = [CellKey("", "", budget, 0, 0) for budget in budgets]
    return {key.budget: len(budget_of(key, roles, labels, seed=seed, class_names=class_names)) for key in keys}
