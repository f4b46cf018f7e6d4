"""From a model folder to what gives features: an encoder, or a classifier without its head; and what may be labelled.

Walking over images is in `evaluate/stream.py`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract, find_model, load_model, read_card
from ssl_ft.build.data import limited, open_data, pool_of, roles_of
from ssl_ft.build.tasks import check_classes
from ssl_ft.config import DataSettings
from ssl_ft.data.duplicates import content_keys
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.stream import Damage, walk_outputs
from ssl_ft.models.timm_model import as_timm
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import say

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embedder:
    """What turns images into features.

    Attributes:
        model: images [B, C, size, size] -> features [B, D].
        contract: its input.
        folder: where it was.
    """

    model: nn.Module
    contract: InputContract
    folder: Path

    @property
    def num_features(self) -> int:
        """D."""
        return as_timm(self.model).num_features


def open_embedder(location: str) -> Embedder:
    """The encoder at a path, or the classifier there without its head.

    Raises:
        UserError: neither an encoder nor a classifier is there.
    """
    folder = _find_either(location)
    model, card, _ = load_model(folder)
    if card.kind == "classifier":
        as_timm(model).reset_classifier(0)
    return Embedder(model, card.contract, folder)


def _find_either(location: str) -> Path:
    wanted = "give a finished pretrain or finetune run, or the folder 'encoder' or 'classifier' in it"
    if not location:
        raise UserError(f"encoder= is missing: {wanted}, such as encoder=runs/pretrain-...")
    path = Path(location).expanduser()
    for folder in (path, path / "encoder", path / "classifier"):
        if (folder / "config.json").is_file():
            return find_model(str(folder), kind=read_card(folder)[0].kind)
    return find_model(location, kind="encoder")  # says what is wrong


def features_of(
    embedder: Embedder,
    source: Source,
    *,
    label: str,
    device: torch.device,
    batch_size: int,
    workers: int,
    max_damaged_share: float,
) -> tuple[Floats, Indices]:
    """Features float32 [N, D] of all readable images of a source, and which images those are, int64 [N].

    Damaged images are left out and said.

    Raises:
        UserError: too many damaged images, or images the model does not take.
    """
    damage = Damage(source, max_share=max_damaged_share)
    features, indices = np.empty((0, 0), np.float32), []
    done = 0
    with ProgressLine(label, total=len(source)) as progress:
        for block in walk_outputs(
            embedder.model, source, embedder.contract, device=device, batch_size=batch_size, damage=damage,
            workers=workers,
        ):  # fmt: skip
            if not len(features):  # filled in place: blocks joined in the end would take as much again
                features = np.empty((len(source), block.outputs.shape[1]), np.float32)
            features[done : done + len(block.outputs)] = block.outputs
            done += len(block.outputs)
            indices.append(block.indices)
            progress.update(block.done)
    for sentence in damage.sentences():
        say(sentence)
    return features[:done], np.concatenate(indices)


@dataclass(frozen=True, eq=False)
class ToLabel:
    """What may be suggested, and what is labelled so far.

    Attributes:
        candidates: images without a label, none of them in the test part.
        labelled: images with a label, none of them in the test part; None where there are none yet.
    """

    candidates: Source
    labelled: Source | None


def open_to_label(pool: DataSettings, labelled: DataSettings | None) -> ToLabel:
    """Open the pool and the labelled images; images that are among the labelled ones, pixel for pixel, leave the pool.

    A pool in which every image has a label is taken as if none had: its labels are not looked at. Labels that other
    stages would hold out for the test teach nothing here.

    Raises:
        UserError: nothing is left to suggest, or the labelled source has no label.
    """
    for data in (pool, labelled):
        if data is not None:
            check_classes(data, stage="suggest")
    source = open_data(pool)
    is_bare = np.zeros(0, bool) if source.labels is None else source.labels < 0
    known: Source | None = None
    if is_bare.any():
        say(f"{source.location}: {int((~is_bare).sum())} of {len(source)} images have a label and are not suggested")
        if source.splits is not None:
            is_bare &= source.splits == pool.train_split
        if not is_bare.any():
            raise UserError(
                f"{source.location}: no image of the split {pool.train_split!r} is without a label, so nothing can "
                "be suggested; name another with pool.train_split="
            )
        candidates = source.subset(limited(np.flatnonzero(is_bare), pool))
        assert source.labels is not None, "some images are without a label, others have one"
        # A copy of an image held out for the test would bring its label into training.
        candidates = _without_copies(candidates, source.subset(np.flatnonzero(source.labels >= 0)), pool)
        known = _teaching(source, pool) if labelled is None else None
    else:
        candidates, _ = pool_of(source, pool)
        if source.labels is not None:
            say(f"{source.location}: every image has a label; they are not looked at")
    if labelled is not None:
        other = open_data(labelled)
        known = _teaching(other, labelled)
        assert other.labels is not None, "what teaches has labels"
        bought = other.subset(np.flatnonzero(other.labels >= 0))
        candidates = _without_copies(candidates, bought, pool)
    return ToLabel(candidates, known)


def _teaching(source: Source, settings: DataSettings) -> Source:
    """The labelled images outside the test part: that of the split's name, or the one every stage would draw."""
    if source.labels is None or not bool((source.labels >= 0).any()):
        raise UserError(
            f"labelled={source.location} has no labels: give class folders or a manifest with a label column, or leave "
            "labelled= out where nothing is labelled yet"
        )
    has_label = source.labels >= 0
    if source.splits is not None and settings.test_split is not None:
        has_label &= source.splits != settings.test_split
        if not has_label.any():
            raise UserError(
                f"labelled={source.location}: all its labels are of the split {settings.test_split!r}, which is kept "
                "for scoring; name another with labelled.test_split="
            )
        return source.subset(np.flatnonzero(has_label))
    counts = np.bincount(source.labels[has_label])
    if (counts > 0).sum() < 2 or counts.max() < 2:
        return source.subset(np.flatnonzero(has_label))  # too few for any stage to hold out some
    roles = roles_of(source, settings)
    return source.subset(np.sort(np.concatenate([roles.train, roles.val])))


def _without_copies(candidates: Source, known: Source, data: DataSettings) -> Source:
    """Candidates that are not among the labelled images, compared by their pixels, read as the data says."""
    keys_of = partial(content_keys, workers=data.workers, white_level=data.white_level, max_pixels=data.max_pixels)
    theirs = keys_of(known)
    seen = {key.tobytes() for key in theirs.pixels[~theirs.damaged]}
    ours = keys_of(candidates)
    is_new = np.array([key.tobytes() not in seen for key in ours.pixels], bool)
    if not is_new.all():
        say(f"{int((~is_new).sum())} images of the pool are labelled already, pixel for pixel, and are left out")
    if not is_new.any():
        raise UserError(f"{candidates.location}: every image is labelled already; there is nothing to suggest")
    return candidates.subset(np.flatnonzero(is_new))
