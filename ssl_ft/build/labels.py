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

    def store(self, indices: Indices, contract: InputContract, *, seed: int) -> ImageStore:
        """Images as training reads them."""
        side = max(contract.size, round(1.15 * contract.size))
        return build_store(
            self.source.subset(indices),
            self.data,
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
        UserError: a class has too few labels, or the source has a class the training labels lack.
    """
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


def without_damaged(
    split: LabelSplit, images: LabelledImages, contract: InputContract, *, run: RunFolder
) -> LabelSplit:
    """The split without training images that cannot be read: another image in their place would carry a wrong label.

    Raises:
        UserError: too many of them, or all of a class.
    """
    source, labels, most = images.source, images.labels, images.data.max_damaged_share
    kept, damaged = [], list[tuple[str, str]]()
    for start in range(0, len(split.train), _BLOCK):
        inputs = images.inputs(split.train[start : start + _BLOCK], contract, max_damaged_share=1.0)
        kept.append(inputs.indices)
        damaged += inputs.damaged
    if not damaged:
        return split
    train = np.concatenate(kept)
    lost = sorted(set(labels[split.train].tolist()) - set(labels[train].tolist()))
    if lost or len(damaged) > most * len(split.train):
        first = "; ".join(f"{name} ({reason})" for name, reason in damaged[:5])
        whole = f", all of class {source.class_names[lost[0]]!r} among them" if lost else ""
        raise UserError(
            f"{source.location}: {len(damaged)} of {len(split.train)} labelled training images cannot be read{whole}: "
            f"{first}. Mend or remove them, or raise data.max_damaged_share={most}"
        )
    run.list_damaged([(name, reason, "") for name, reason in damaged])
    run.note(f"{len(damaged)} damaged training images were left out, labels and all; see damaged.csv")
    return LabelSplit(train, split.val, split.test)
