"""Labelled images for fine-tuning: where the labels of a budget go, and reading them as training and scoring do."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.build.data import ImageKind, build_store
from ssl_ft.config import DataSettings, FinetuneSettings
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles, carve_val, label_budget
from ssl_ft.data.store import ImageStore
from ssl_ft.data.target_splits import carve_target_val, target_budget, target_gaps
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import Inputs, read_inputs
from ssl_ft.runlog import RunFolder

Indices = NDArray[np.int64]

# Images decoded at a time where only damage is looked for.
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class LabelSplit:
    """Where the labels of a budget go: indices into the source.

    Attributes:
        train: trained on.
        val: chosen on; part of the budget.
        test: scored once.
    """

    train: Indices
    val: Indices
    test: Indices


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A labelled source and how it is read.

    Attributes:
        source: images and labels.
        data: how to decode them.
        pool: int64, images of the training role; of those outside a budget no label is looked at.
        folder: where decoded pixels may lie with `data.cache=disk`.
    """

    source: Source
    data: DataSettings
    pool: Indices
    folder: Path

    @property
    def labels(self) -> Indices:
        """int64 [N] of the whole source."""
        assert self.source.labels is not None, "roles need labels"
        return self.source.labels

    @property
    def targets(self) -> NDArray[np.float32]:
        """float32 [N, K] of the whole source, for other tasks than classes."""
        assert self.source.targets is not None, "roles need targets"
        return self.source.targets

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the model's outputs are called."""
        return self.source.class_names if self.source.task == "classes" else self.source.target_names

    def store(self, indices: Indices, contract: InputContract, *, seed: int) -> ImageStore:
        """Images as training reads them."""
        side = max(contract.size, round(1.15 * contract.size))
        return build_store(
            self.source.subset(indices),
            self.data.model_copy(update={"white_level": contract.white_level}),  # as scoring reads them
            kind=ImageKind(contract.channels, side, False),
            channels=contract.channels,
            size=contract.size,
            seed=seed,
            run=self.folder,
        )

    def inputs(self, indices: Indices, contract: InputContract, *, max_damaged_share: float | None = None) -> Inputs:
        """Images as scoring reads them; damaged ones are left out.

        Raises:
            UserError: images that break the contract, or too many damaged ones.
        """
        share = self.data.max_damaged_share if max_damaged_share is None else max_damaged_share
        return read_inputs(
            self.source,
            indices,
            contract,
            max_damaged_share=share,
            max_pixels=self.data.max_pixels,
            workers=self.data.workers,
        )


def split_budget(settings: FinetuneSettings, source: Source, roles: Roles) -> LabelSplit:
    """Draw the budget and take val from it; a val split of the data serves instead where all labels are bought.

    Raises:
        UserError: a class has too few labels, the source has a class the training labels lack, or the budget holds no
            value of a target.
    """
    if source.targets is not None:
        return _split_targets(settings, source, roles)
    assert source.labels is not None, "roles need labels"
    if settings.labels == "all" and len(roles.val):
        return LabelSplit(roles.train, roles.val, roles.test)
    chosen = roles.train
    if settings.labels != "all":
        chosen = label_budget(
            source.labels,
            roles.train,
            per_class=settings.labels,
            draw=settings.draw,
            seed=settings.seed,
            class_names=source.class_names,
        )
    train, val = carve_val(source.labels, chosen, share=settings.val_share, seed=settings.seed, draw=settings.draw)
    return LabelSplit(train, val, roles.test)


def _split_targets(settings: FinetuneSettings, source: Source, roles: Roles) -> LabelSplit:
    targets, task = source.targets, source.task
    assert targets is not None, "only called with targets"
    split = LabelSplit(roles.train, roles.val, roles.test)
    if settings.labels != "all" or not len(roles.val):
        chosen = roles.train
        if settings.labels != "all":
            chosen = target_budget(
                targets, roles.train, task=task, size=settings.labels, draw=settings.draw, seed=settings.seed
            )
        train, val = carve_target_val(
            targets, chosen, task=task, share=settings.val_share, seed=settings.seed, draw=settings.draw
        )
        split = LabelSplit(train, val, roles.test)
    _check_known(split.train, source, settings)
    return split


def _check_known(train: Indices, source: Source, settings: FinetuneSettings) -> None:
    assert source.targets is not None, "only called with targets"
    empty = np.isnan(source.targets[train]).all(axis=0)
    if empty.any():
        name = source.target_names[int(np.argmax(empty))]
        raise UserError(
            f"{source.location}: the {len(train)} images that labels={settings.labels} leaves to train on (after "
            f"val_share={settings.val_share}) have no value of the target {name!r}: raise labels, or take it out of "
            "data.targets"
        )


def gap_notes(split: LabelSplit, images: LabelledImages) -> list[str]:
    """Sentences on labels that training, or test, says nothing of; none for classes."""
    if images.source.task == "classes":
        return []
    return [
        f"{gap} among the {len(indices)} {part} images: {what}"
        for part, indices, what in (
            ("training", split.train, "it is not learnt"),
            ("test", split.test, "its scores are left out"),
        )
        for gap in target_gaps(images.targets[indices], task=images.source.task, names=images.output_names)
    ]


def with_also(split: LabelSplit, also: Indices) -> LabelSplit:
    """The split with images of further sources among what is trained on; neither val nor test has any of them."""
    return LabelSplit(np.concatenate([split.train, also]), split.val, split.test)


def without_damaged(
    split: LabelSplit, images: LabelledImages, contract: InputContract, *, run: RunFolder
) -> LabelSplit:
    """The split without training images that cannot be read: another image in their place would carry a wrong label.

    Raises:
        UserError: too many of them, or all of a class.
    """
    source, most = images.source, images.data.max_damaged_share
    kept, damaged = [], list[tuple[str, str]]()
    for start in range(0, len(split.train), _BLOCK):
        inputs = images.inputs(split.train[start : start + _BLOCK], contract, max_damaged_share=1.0)
        kept.append(inputs.indices)
        damaged += inputs.damaged
    if not damaged:
        return split
    train = np.concatenate(kept)
    lost = _lost_output(images, split.train, train)
    if lost or len(damaged) > most * len(split.train):
        first = "; ".join(f"{name} ({reason})" for name, reason in damaged[:5])
        whole = f", all of {lost} among them" if lost else ""
        raise UserError(
            f"{source.location}: {len(damaged)} of {len(split.train)} labelled training images cannot be read{whole}: "
            f"{first}. Mend or remove them, or raise data.max_damaged_share={most}"
        )
    run.list_damaged([(name, reason, "") for name, reason in damaged])
    run.note(f"{len(damaged)} damaged training images were left out, labels and all; see damaged.csv")
    return LabelSplit(train, split.val, split.test)


def _lost_output(images: LabelledImages, before: Indices, after: Indices) -> str:
    """The first class, or target, of which no image is left, in words; empty where none is lost."""
    if images.source.task != "classes":
        known = ~np.isnan(images.targets)
        gone = known[before].any(axis=0) & ~known[after].any(axis=0)
        return f"target {images.output_names[int(np.argmax(gone))]!r}" if gone.any() else ""
    lost = sorted(set(images.labels[before].tolist()) - set(images.labels[after].tolist()))
    return f"class {images.output_names[lost[0]]!r}" if lost else ""
