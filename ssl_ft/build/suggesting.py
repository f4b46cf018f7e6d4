"""What the stage suggest needs beside features: how unsure a classifier or a probe is, and what is left to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import find_model, load_model
from ssl_ft.build.embedding import ToLabel, open_embedder, open_to_label
from ssl_ft.config import SuggestSettings
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.probe import probe_budget, standardise
from ssl_ft.evaluate.stream import Damage, walk_outputs
from ssl_ft.labelling.doubt import entropy_doubt, margin_doubt
from ssl_ft.outputs import write_rows
from ssl_ft.progress import ProgressLine
from ssl_ft.report.contact_sheets import Tile, read_picture, write_sheet

NEEDS = "suggest needs a pool and an encoder: `ssl-ft suggest pool=POOL encoder=runs/pretrain-...`"
_SHOWN, _A_ROW = 100, 10
_COPIES = 3


@dataclass(frozen=True, eq=False)
class Opinion:
    """What a classifier makes of the candidates.

    Attributes:
        doubts: float64 [N] in [0, 1].
        guesses: int64 [N], likeliest class.
        class_names: by class number.
    """

    doubts: NDArray[np.float64]
    guesses: NDArray[np.int64]
    class_names: tuple[str, ...]


def opinion_of(settings: SuggestSettings, shares: NDArray[np.float64], class_names: Sequence[str]) -> Opinion:
    """Doubts from class probabilities, float64 [N, C]."""
    doubt = margin_doubt if settings.uncertainty == "margin" else entropy_doubt
    return Opinion(doubt(shares), shares.argmax(1), tuple(class_names))


def check_opinion(settings: SuggestSettings, images: ToLabel) -> None:
    """Refuse, before anything is embedded, to ask for doubts where nothing can have any.

    Raises:
        UserError: no classifier and no labels of two classes.
    """
    if settings.by == "coverage" or settings.classifier:
        return
    if images.labelled is None and settings.by == "uncertainty":
        raise UserError(
            "by=uncertainty needs a classifier that can be unsure: give classifier=runs/finetune-... or labelled= with "
            "the images labelled so far, or choose by=coverage, which needs neither"
        )
    known = None if images.labelled is None else images.labelled.labels
    if images.labelled is not None and known is not None and len(np.unique(known)) < 2:
        raise UserError(
            f"{images.labelled.location}: all labels are of one class, so no probe can be unsure of another; choose "
            "by=coverage"
        )


def memory_mb(images: ToLabel, *, num_features: int) -> float:
    """MiB of the features of all images while some are chosen: as they are, brought to length 1, and joined."""
    count = len(images.candidates) + (0 if images.labelled is None else len(images.labelled))
    return _COPIES * count * num_features * 4 / 2**20


def check_memory(settings: SuggestSettings, images: ToLabel, *, num_features: int) -> None:
    """Refuse, before anything is embedded, a pool whose features would take more memory than is allowed.

    Raises:
        UserError: as said.
    """
    needed = memory_mb(images, num_features=num_features)
    if needed > settings.memory_mb:
        fit = int(len(images.candidates) * settings.memory_mb / needed)
        raise UserError(
            f"pool={images.candidates.location}: {num_features} features of each of {len(images.candidates):,} images "
            f"take {needed:,.0f} MiB while some are chosen, more than memory_mb={settings.memory_mb}; choose from a "
            f"random part with pool.limit={fit}, or raise memory_mb"
        )


def plan_suggestions(settings: SuggestSettings) -> list[str]:
    """What would be chosen from, and the memory that takes, in sentences; what is missing, where nothing is named.

    Raises:
        UserError: what the stage refuses before it embeds.
    """
    if settings.pool is None or not (settings.encoder or settings.classifier):
        return [NEEDS]
    embedder = open_embedder(settings.encoder or settings.classifier)
    images = open_to_label(settings.pool, settings.labelled)
    check_opinion(settings, images)
    check_memory(settings, images, num_features=embedder.num_features)
    needed = memory_mb(images, num_features=embedder.num_features)
    labelled = 0 if images.labelled is None else len(images.labelled)
    return [
        f"encoder: {embedder.folder}",
        f"{settings.n} of {len(images.candidates)} images at {images.candidates.location}, by {settings.by}; "
        f"{labelled} labelled ones teach",
        f"memory: {needed:,.0f} MiB for features, at most memory_mb={settings.memory_mb}",
    ]


def classifier_opinion(settings: SuggestSettings, candidates: Source, *, device: torch.device) -> Opinion:
    """What the classifier named makes of all candidates, damaged ones left out as for features.

    Raises:
        UserError: no classifier there, one of another task or of a single class, or images it does not take.
    """
    model, card, _ = load_model(find_model(settings.classifier, kind="classifier"))
    if card.task != "classes":
        raise UserError(
            f"classifier={settings.classifier} was trained with data.task={card.task}, and doubt is told from one "
            "choice among classes; name a classifier of classes, or give encoder= alone and by=coverage"
        )
    if len(card.class_names) < 2:
        raise UserError(f"classifier={settings.classifier} knows one class only and is never unsure; name another")
    damage = Damage(candidates, max_share=settings.max_damaged_share)
    blocks = []
    with ProgressLine("classifier", total=len(candidates)) as progress:
        for block in walk_outputs(
            model, candidates, card.contract, device=device, batch_size=settings.batch_size, damage=damage,
            workers=settings.workers,
        ):  # fmt: skip
            blocks.append(torch.from_numpy(block.outputs).double().softmax(1).numpy())
            progress.update(block.done)
    return opinion_of(settings, np.concatenate(blocks), card.class_names)


def probe_opinion(
    settings: SuggestSettings,
    features: NDArray[np.float32],
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
) -> Opinion:
    """What a linear probe on the labelled images makes of the candidates.

    Args:
        settings: of the stage.
        features: float32 [N, D] of the candidates.
        known: float32 [L, D] of the labelled images.
        labels: int64 [L].
        class_names: by class number.
    """
    present, codes = np.unique(labels, return_inverse=True)
    mean, scale = standardise(np.concatenate([features, known]))
    probe = probe_budget(known, codes, num_classes=len(present), mean=mean, scale=scale, seed=settings.seed)
    return opinion_of(settings, probe.predict_proba(features), [class_names[number] for number in present])


def write_suggestions(
    out: Path, candidates: Source, chosen: NDArray[np.int64], opinion: Opinion | None, *, white_level: int
) -> Path:
    """Write the table, and beside it a sheet of the first hundred; return the sheet's path.

    Args:
        out: rank, path, and where there is an opinion guess and doubt.
        candidates: where the images are.
        chosen: int64 [n], which of them, in order.
        opinion: of the chosen ones, in the same order.
        white_level: of 16-bit images.
    """
    header = ["rank", "path"] + ([] if opinion is None else ["guess", "doubt"])
    rows: list[list[object]] = [[rank + 1, candidates.names[index]] for rank, index in enumerate(chosen.tolist())]
    if opinion is not None:
        for row, guess, doubt in zip(rows, opinion.guesses.tolist(), opinion.doubts.tolist(), strict=True):
            row += [opinion.class_names[guess], float(doubt)]
    write_rows(out, header, rows)
    tiles = []
    for row, index in zip(rows[:_SHOWN], chosen.tolist(), strict=False):
        words = f"{row[0]}" if opinion is None else f"{row[0]}: {row[2]}? {row[3]:.2f}"
        tiles.append(Tile(read_picture(candidates, index, white_level=white_level), (words, str(row[1]))))
    title = f"Images to label next, {len(tiles)} of {len(rows)}"
    title += "" if opinion is None else "; under each its rank, the guess and the doubt (0 sure, 1 unsure)"
    grid = [tiles[start : start + _A_ROW] for start in range(0, len(tiles), _A_ROW)]
    return write_sheet(grid, out.with_suffix(".png"), title=title, has_queries=False)
