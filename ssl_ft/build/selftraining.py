"""Assembles self-training from settings: the pool without copies of labelled images, a teacher, students.

Rounds are in `ssl_ft/transfer/selftrain.py`, the choice of pseudo-labels in `ssl_ft/transfer/pseudo_labels.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.special import softmax

from ssl_ft.artifact import InputContract
from ssl_ft.build.data import open_data, pool_of
from ssl_ft.build.draft import Start
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import Indices, LabelledImages, LabelSplit
from ssl_ft.build.tasks import read_val
from ssl_ft.build.transfer import Trained, finetune_plan, train_classifier
from ssl_ft.config import DataSettings, FinetuneSettings, HeadSettings, SelftrainSettings
from ssl_ft.data.duplicates import content_keys, exact_duplicates
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.handover import Labelled
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.finetune import score
from ssl_ft.transfer.pseudo_labels import PseudoLabels, choose_pseudo_labels
from ssl_ft.transfer.selftrain import Round, SelfTrained, self_train

# Pool images decoded at a time.
_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The pool as teachers see it.

    Attributes:
        images: the source and how it is read; its labels, if it has any, are not looked at.
        rows: int64, its images that may be given a label.
    """

    images: LabelledImages
    rows: Indices


def open_unlabelled(
    settings: SelftrainSettings, labelled: Labelled, split: LabelSplit, *, run: RunFolder
) -> Unlabelled:
    """The pool that is to be labelled: the one named, or what the encoder was pretrained on.

    Raises:
        UserError: nothing is left of it.
    """
    data = settings.pool or parent_data(
        labelled.origin.pretrained_folder(instead="name the unlabelled images with pool=")
    )
    return without_copies(data, labelled.source, split, run=run)


def without_copies(
    data: DataSettings, source: Source, split: LabelSplit, *, run: RunFolder, setting: str = "pool"
) -> Unlabelled:
    """A pool without any image that is also, pixel for pixel, in train, val or test, and without damaged ones.

    Args:
        data: the pool.
        source: the labelled images.
        split: of them.
        run: where what was left out is told.
        setting: how messages name the pool.

    Raises:
        UserError: nothing is left of it.
    """
    pool, _ = pool_of(open_data(data), data)
    with ProgressLine("looking for copies", total=len(pool)) as progress:
        keys = content_keys(
            pool, workers=data.workers, white_level=data.white_level, max_pixels=data.max_pixels,
            on_progress=lambda done, total: progress.update(done),
        )  # fmt: skip
    is_known = keys.damaged.copy()
    for role, indices in (("train", split.train), ("val", split.val), ("test", split.test)):
        own = content_keys(source.subset(indices), white_level=data.white_level, max_pixels=data.max_pixels)
        pairs = exact_duplicates(keys.pixels, own.pixels)
        is_known[pairs[:, 0]] = True
        if len(pairs):
            run.note(f"{len(np.unique(pairs[:, 0]))} pool images are {role} images, pixel for pixel, and were left out")
    damaged = np.flatnonzero(keys.damaged)
    if len(damaged):
        run.list_damaged([(pool.names[i], "cannot be read", "") for i in damaged.tolist()])
        run.note(f"{len(damaged)} damaged pool images were left out; see damaged.csv")
    rows = np.flatnonzero(~is_known)
    if not len(rows):
        raise UserError(
            f"{setting}={pool.location}: all of its {len(pool)} images are labelled or test images too, so there is "
            f"nothing to label; name other images with {setting}="
        )
    return Unlabelled(LabelledImages(pool, data, rows, run.path / "pool"), rows)


def train_rounds(
    settings: SelftrainSettings,
    start: Start,
    images: LabelledImages,
    split: LabelSplit,
    pool: Unlabelled,
    *,
    device: torch.device,
    should_stop: Callable[[], bool],
    on_row: Callable[[int, dict[str, float]], None],
    on_round: Callable[[Round], None],
) -> tuple[Trained, SelfTrained[Trained]]:
    """The teacher that is the baseline, and what self-training made of it.

    Raises:
        UserError: the budget leaves no label to choose on.
    """
    if not len(split.val):
        raise UserError(
            f"labels={settings.labels} leaves no label for val, and self-training must choose between teacher and "
            "student: take 2 labels per class or more"
        )
    train_one = partial(train_classifier, device=device, should_stop=should_stop, on_row=on_row)
    own = settings.model_copy(update={"strategy": "probe"}) if settings.teacher == "probe" else settings
    if own.strategy == "probe" and (own.probe or HeadSettings()).head == "exact":
        teacher = probe_teacher(own, start, images, split, device=device)
    else:
        teacher = train_one(own, start, images, split)
    guess = partial(_guess, settings, images, split, pool, contract=start.contract, device=device)
    strong = settings.model_copy(update={"views": settings.strong_views, "epochs": settings.student_epochs})

    def train(number: int, chosen: PseudoLabels) -> Trained:
        joined, new_split = join_pseudo_labels(images, split, pool, chosen)
        seeded = strong.model_copy(update={"seed": derive_seed(settings.seed, "student", number) >> 33})
        steps = finetune_plan(seeded, num_train=len(new_split.train)).num_steps
        return train_one(seeded, start, joined, new_split, num_steps=steps)

    found = self_train(
        teacher, guess=guess, train=train, most_rounds=settings.rounds, on_round=on_round, should_stop=should_stop
    )
    return teacher, found


def probe_teacher(
    settings: FinetuneSettings, start: Start, images: LabelledImages, split: LabelSplit, *, device: torch.device
) -> Trained:
    """The solved probe of the labels in train alone, scored on val.

    By itself a probe fits val labels too, as it has nothing to choose on them. Here val judges the students, and what
    they learn, the teacher's guesses, must know nothing of it.
    """
    alone = train_classifier(settings, start, images, replace(split, val=split.val[:0]), device=device)
    val = read_val(images, split.val, contract=start.contract, scale=None)
    accuracy, loss = score(alone.model, val, start.contract, device=device)
    return replace(alone, val_accuracy=accuracy, val_loss=loss, num_val=len(val.labels))


def _guess(
    settings: SelftrainSettings,
    images: LabelledImages,
    split: LabelSplit,
    pool: Unlabelled,
    teacher: Trained,
    *,
    contract: InputContract,
    device: torch.device,
) -> PseudoLabels:
    """Pseudo-labels of the teacher; rows are places in `pool.rows`."""
    shares, places = [], []
    with ProgressLine("labelling the pool", total=len(pool.rows)) as progress:
        for first in range(0, len(pool.rows), _BLOCK):
            inputs = pool.images.inputs(pool.rows[first : first + _BLOCK], contract)
            logits = compute_outputs(teacher.model, inputs.pixels, contract, device=device, batch_size=256)
            shares.append(softmax(logits.astype(np.float64), axis=1))
            # Images that cannot be read drop out of a block: the others keep their own places.
            places.append(np.searchsorted(pool.rows, inputs.indices))
            progress.update(min(first + _BLOCK, len(pool.rows)))
    counts = np.bincount(images.labels[split.train], minlength=len(images.source.class_names))
    chosen = choose_pseudo_labels(
        np.concatenate(shares), threshold=settings.threshold, num_labelled=counts, most_ratio=settings.balance
    )
    return replace(chosen, rows=np.concatenate(places)[chosen.rows])


def join_pseudo_labels(
    images: LabelledImages, split: LabelSplit, pool: Unlabelled, chosen: PseudoLabels
) -> tuple[LabelledImages, LabelSplit]:
    """Train and val images of the split, then the pool's chosen ones with their pseudo-labels, as one labelled source.

    The test part of the new split is empty: there is nothing to score on while choosing.
    """
    true, picked = np.concatenate([split.train, split.val]), pool.rows[chosen.rows]
    one, other, cut = images.source.subset(true), pool.images.source.subset(picked), len(true)
    source = Source(
        kind=one.kind,
        location=f"{one.location} + {other.location}",
        names=[*one.names, *(f"pool:{name}" for name in other.names)],
        read=lambda i: one.read(i) if i < cut else other.read(i - cut),
        evidence=lambda i: one.evidence(i) if i < cut else other.evidence(i - cut),
        labels=np.concatenate([images.labels[true], chosen.labels]),
        class_names=images.source.class_names,
    )
    train = np.concatenate([np.arange(len(split.train)), cut + np.arange(len(picked))])
    val = np.arange(len(split.train), cut)
    joined = LabelledImages(source, images.data, train, images.folder / "student")
    return joined, LabelSplit(train, val, np.empty(0, np.int64))
