"""From a model folder to what gives features: an encoder, or a classifier without its head; and what may be labelled.

Walking over images is in `evaluate/stream.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract, find_model, load_model, read_card
from ssl_ft.build.data import open_data, pool_of
from ssl_ft.config import DataSettings
from ssl_ft.data.duplicates import content_keys
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.stream import Damage, walk_outputs
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


def open_embedder(location: str) -> Embedder:
    """The encoder at a path, or the classifier there without its head.

    Raises:
        UserError: neither an encoder nor a classifier is there.
    """
    folder = _find_either(location)
    model, card, _ = load_model(folder)
    if card.kind == "classifier":
        model.reset_classifier(0)  # type: ignore[operator]
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
    outputs, indices = [], []
    with ProgressLine(label, total=len(source)) as progress:
        for block in walk_outputs(
            embedder.model, source, embedder.contract, device=device, batch_size=batch_size, damage=damage,
            workers=workers,
        ):  # fmt: skip
            outputs.append(block.outputs)
            indices.append(block.indices)
            progress.update(block.done)
    for sentence in damage.sentences():
        say(sentence)
    return np.concatenate(outputs), np.concatenate(indices)


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

    A pool in which every image has a label is taken as if none had: its labels are not looked at.

    Raises:
        UserError: nothing is left to suggest, or the labelled source has no label.
    """
    source = open_data(pool)
    candidates, _ = pool_of(source, pool)
    known = None if labelled is None else _labelled_part(open_data(labelled), labelled)
    if candidates.labels is not None:
        is_bare = candidates.labels < 0
        if is_bare.any():
            say(
                f"{source.location}: {int((~is_bare).sum())} of {len(candidates)} images have a label; the others count"
            )
            if known is None and not is_bare.all():
                known = candidates.subset(np.flatnonzero(~is_bare))
            candidates = candidates.subset(np.flatnonzero(is_bare))
        else:
            say(f"{source.location}: every image has a label; they are not looked at")
    if labelled is not None and known is not None:
        candidates = _without_copies(candidates, known, workers=pool.workers, white_level=pool.white_level)
    return ToLabel(candidates, known)


def _labelled_part(source: Source, settings: DataSettings) -> Source:
    if source.labels is None or not bool((source.labels >= 0).any()):
        raise UserError(
            f"labelled={source.location} has no labels: give class folders or a manifest with a label column, or leave "
            "labelled= out where nothing is labelled yet"
        )
    has_label = source.labels >= 0
    if source.splits is not None and settings.test_split is not None:
        has_label &= source.splits != settings.test_split
    if not has_label.any():
        raise UserError(f"labelled={source.location}: all its labels are of the split {settings.test_split!r}, "
                        "which is kept for scoring; name another with labelled.test_split=")  # fmt: skip
    return source.subset(np.flatnonzero(has_label))


def _without_copies(candidates: Source, known: Source, *, workers: int, white_level: int) -> Source:
    """Candidates that are not among the labelled images, compared by their pixels."""
    theirs = content_keys(known, workers=workers, white_level=white_level)
    seen = {key.tobytes() for key in theirs.pixels[~theirs.damaged]}
    ours = content_keys(candidates, workers=workers, white_level=white_level)
    is_new = np.array([key.tobytes() not in seen for key in ours.pixels], bool)
    if not is_new.all():
        say(f"{int((~is_new).sum())} images of the pool are labelled already, pixel for pixel, and are left out")
    if not is_new.any():
        raise UserError(f"{candidates.location}: every image is labelled already; there is nothing to suggest")
    return candidates.subset(np.flatnonzero(is_new))
