"""Assembles a fine-tuning from settings: which weights start how, which labels go where."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from ssl_ft.artifact import InputContract, load_model
from ssl_ft.build.data import ImageKind, build_store
from ssl_ft.build.parts import optimizer_for, view_recipe
from ssl_ft.config import DataSettings, FinetuneSettings
from ssl_ft.data.batches import ViewMaker
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles, carve_val, label_budget
from ssl_ft.data.store import ImageStore
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import read_inputs
from ssl_ft.loop import LoopPlan
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.optim import parameter_groups
from ssl_ft.result import Parent
from ssl_ft.runlog import RunFolder
from ssl_ft.schedules import scaled_rate
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.finetune import ValSet

# Evaluations on val over a whole training, whatever its length in epochs.
_MOST_EVALUATIONS = 60
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

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


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
    split: LabelSplit, source: Source, data: DataSettings, contract: InputContract, *, run: RunFolder
) -> LabelSplit:
    """The split without training images that cannot be read: another image in their place would carry a wrong label.

    Raises:
        UserError: too many of them, or all of a class.
    """
    assert source.labels is not None, "roles need labels"
    kept, damaged = [], list[tuple[str, str]]()
    for start in range(0, len(split.train), _BLOCK):
        block = split.train[start : start + _BLOCK]
        inputs = read_inputs(
            source, block, contract, max_damaged_share=1.0, max_pixels=data.max_pixels, workers=data.workers
        )
        kept.append(inputs.indices)
        damaged += inputs.damaged
    if not damaged:
        return split
    train = np.concatenate(kept)
    lost = sorted(set(source.labels[split.train].tolist()) - set(source.labels[train].tolist()))
    if lost or len(damaged) > data.max_damaged_share * len(split.train):
        first = "; ".join(f"{name} ({reason})" for name, reason in damaged[:5])
        whole = f", all of class {source.class_names[lost[0]]!r} among them" if lost else ""
        raise UserError(
            f"{source.location}: {len(damaged)} of {len(split.train)} labelled training images cannot be read{whole}: "
            f"{first}. Mend or remove them, or raise data.max_damaged_share={data.max_damaged_share}"
        )
    run.list_damaged([(name, reason, "") for name, reason in damaged])
    run.note(f"{len(damaged)} damaged training images were left out, labels and all; see damaged.csv")
    return LabelSplit(train, split.val, split.test)


def start_model(
    settings: FinetuneSettings, folder: Path, *, num_classes: int, run: RunFolder
) -> tuple[nn.Module, EncoderSpec, InputContract]:
    """The classifier with a fresh head: on the pretrained encoder, or for `scratch` on a fresh one of its shape."""
    encoder, card, digest = load_model(folder)
    run.parents.append(Parent(path=str(folder), sha256=digest, kind=card.kind))
    if settings.strategy == "scratch":
        encoder = build_encoder(card.spec, seed=derive_seed(settings.seed, "scratch") >> 1)
        run.note("scratch: the encoder's weights are fresh; only its architecture and input contract are used")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "classifier head") >> 1)
        encoder.reset_classifier(num_classes)  # type: ignore[operator]
    return encoder, card.spec, card.contract


def finetune_optimizer(settings: FinetuneSettings, model: nn.Module, *, batch_size: int) -> Optimizer:
    """An optimizer with the head at the peak rate and the encoder at its share of it."""
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    in_head = {id(p) for p in head.parameters()}
    share = 1.0 if settings.strategy == "scratch" else settings.encoder_rate_share
    groups = parameter_groups([(model, share)], weight_decay=settings.optim.weight_decay)
    split: list[dict[str, object]] = []
    for group in groups:
        parameters: list[nn.Parameter] = group["params"]  # type: ignore[assignment]
        for scale, members in (
            (share, [p for p in parameters if id(p) not in in_head]),
            (1.0, [p for p in parameters if id(p) in in_head]),
        ):
            split += [{**group, "params": members, "scale": scale}] if members else []
    return optimizer_for(settings.optim, split, batch_size=batch_size)


def finetune_plan(settings: FinetuneSettings, *, num_train: int, batch_size: int) -> LoopPlan:
    """How the loop steps: the epochs asked for, or longer where the labels are few."""
    per_epoch = max(1, num_train // batch_size)
    num_steps = max(settings.epochs * per_epoch, settings.min_steps)
    optim = settings.optim
    return LoopPlan(
        num_steps=num_steps,
        warmup_steps=round(optim.warmup * num_steps),
        rate=scaled_rate(optim.rate, rule=optim.rule, batch_size=batch_size),
        final_share=optim.final_share,
        clip_norm=optim.clip_norm,
        autocast=torch.bfloat16 if settings.precision == "bf16" else None,
        log_every=max(1, num_steps // _MOST_EVALUATIONS),
        eval_every=max(per_epoch, -(-num_steps // _MOST_EVALUATIONS)),
        save_every=num_steps,
    )


def labelled_objective(
    settings: FinetuneSettings,
    model: nn.Module,
    source: Source,
    split: LabelSplit,
    data: DataSettings,
    contract: InputContract,
    *,
    run: Path,
) -> tuple[Supervised, ImageStore, ValSet]:
    """The training objective, the store of its images, and the val set.

    Raises:
        UserError: images that break the contract, or too many damaged ones.
    """
    assert source.labels is not None, "roles need labels"
    pool = source.subset(split.train)
    side = max(contract.size, round(1.15 * contract.size))
    kind = ImageKind(contract.channels, side, False)
    store = build_store(
        pool, data, kind=kind, channels=contract.channels, size=contract.size, seed=settings.seed, run=run
    )
    inputs = read_inputs(
        source,
        split.val,
        contract,
        max_damaged_share=data.max_damaged_share,
        max_pixels=data.max_pixels,
        workers=data.workers,
    )
    recipe = view_recipe(settings.views, size=contract.size, channels=contract.channels)
    views = ViewMaker(recipe, contract.mean, contract.std, settings.seed)
    if len(pool) < 1:
        raise UserError("the label budget leaves nothing to train on")
    objective = Supervised(
        model,
        torch.from_numpy(source.labels[split.train]),
        views=views,
        label_smoothing=settings.label_smoothing,
    )
    return objective, store, ValSet(inputs.pixels, source.labels[inputs.indices])
