"""What each task trains on and is judged by: classes, multi-label, regression; from settings and labelled images."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ft.artifact import InputContract
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.build.parts import label_views
from ssl_ft.build.precision import emulation_notes
from ssl_ft.config import DataSettings, FinetuneSettings
from ssl_ft.config.strategies import KEEP_THE_ENCODER
from ssl_ft.data.balanced import BalancedOrder, class_groups, label_groups
from ssl_ft.data.permutation import Order, permute
from ssl_ft.errors import UserError
from ssl_ft.objectives.mixing import Mixing
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.objectives.target_losses import (
    class_weights,
    masked_binary_cross_entropy,
    masked_huber,
    masked_squared_error,
)
from ssl_ft.objectives.targeted import Targeted
from ssl_ft.transfer.finetune import LEAST_TO_CHOOSE, Judge, ValSet, judge_classes, judge_labels, judge_numbers
from ssl_ft.transfer.number_head import NumberScale, number_scale
from ssl_ft.transfer.strategy import Prepared

JUDGES: dict[str, Judge] = {"classes": judge_classes, "multi_label": judge_labels, "regression": judge_numbers}
# What the judges' scores are called in logs and results.
SCORE_NAMES = {"classes": "accuracy", "multi_label": "mean_average_precision", "regression": "mean_r2"}

# What says how steps are taken.
_OF_STEPS = {"epochs", "min_steps", "patience", "batch_size", "optim", "views", "precision"}


def check_task(settings: FinetuneSettings, data: DataSettings) -> None:
    """Refuse settings that do not concern the task, or a strategy that does not take steps, instead of ignoring them.

    Raises:
        UserError: all of them, a line each.
    """
    about_classes = {
        "imbalance.weights": settings.imbalance.weights != "none",
        "imbalance.sampling": settings.imbalance.sampling != "none",
        "label_smoothing": settings.label_smoothing > 0,
    }
    in_steps = {**about_classes, "mix.mixup": settings.mix.mixup > 0, "mix.cutmix": settings.mix.cutmix > 0}
    is_exact = settings.probe is None or settings.probe.head == "exact"
    is_solved = settings.strategy == "probe" and is_exact
    problems = []
    if settings.also and data.task != "classes":
        problems.append(f"also= joins sources of classes, by their names; data.task={data.task} has none, leave it out")
    if data.task == "regression":
        problems += [f"{key} concerns classes and labels; data.task=regression has none" for key in _on(about_classes)]
    elif settings.regression.model_fields_set:
        given = ", ".join(f"regression.{key}" for key in sorted(settings.regression.model_fields_set))
        problems.append(f"{given} concerns data.task=regression alone; this is data.task={data.task}")
    if is_exact and settings.strategy in ("probe", "probe_then_finetune") and data.task != "classes":
        problems.append(f"probe.head=exact solves for classes alone; for data.task={data.task} use probe.head=trained")
    elif is_solved:
        problems += [f"{key} concerns training in steps; probe.head=exact is solved for" for key in _on(in_steps)]
    default = FinetuneSettings.model_fields["encoder_rate_share"].default
    if settings.encoder_rate_share != default and settings.strategy in KEEP_THE_ENCODER:
        other = {"adapter": "adapter.rate_share", "probe": "optim.rate"}.get(settings.strategy, "low_rank.rate_share")
        problems.append(
            f"encoder_rate_share: the encoder's own layers do not move in strategy={settings.strategy}; set {other}"
        )
    has_share = settings.probe is not None and "share" in settings.probe.model_fields_set
    if has_share and (is_exact or settings.strategy != "probe_then_finetune"):
        problems.append("probe.share is of strategy=probe_then_finetune with probe.head=trained; leave it out")
    if problems:
        raise UserError("\n  ".join(["these settings do not go together:", *problems]))


def training_notes(settings: FinetuneSettings, *, num_val: int, device: torch.device) -> list[str]:
    """On settings of steps given to a head solved for, on bf16 that is emulated, and on val too small to choose by."""
    if settings.strategy == "probe" and (settings.probe is None or settings.probe.head == "exact"):
        given = ", ".join(sorted(settings.model_fields_set & _OF_STEPS))
        why = "of training in steps, and this head is solved for; probe.head=trained takes steps"
        return [f"{given}: {why}"] if given else []
    notes = emulation_notes(settings.precision, device)
    if 0 < num_val < LEAST_TO_CHOOSE:
        notes.append(
            f"val has {num_val} images, fewer than {LEAST_TO_CHOOSE}: it stops nothing, and the last weights are kept"
        )
    return notes


def check_classes(data: DataSettings, *, stage: str) -> None:
    """Refuse data of another task than classes.

    Raises:
        UserError: as said.
    """
    if data.task != "classes":
        raise UserError(
            f"{stage} judges classes alone, and data.task={data.task}: `ssl-ft finetune` trains and scores the other "
            "tasks (strategy=probe probe.head=trained moves the head alone), or name data with classes"
        )


def _on(settings: dict[str, bool]) -> list[str]:
    return [key for key, is_on in settings.items() if is_on]


def build_objective(
    settings: FinetuneSettings,
    prepared: Prepared,
    images: LabelledImages,
    train: Indices,
    *,
    contract: InputContract,
) -> Supervised | Targeted:
    """What training minimises on the images `train`, in the order in which their store numbers them."""
    views = label_views(settings.views, contract, seed=settings.seed)
    mixing = build_mixing(settings)
    if images.source.task == "classes":
        labels = images.labels[train]
        is_weighted = mixing is not None or settings.imbalance.weights != "none"
        counts = np.bincount(labels, minlength=len(images.output_names)).tolist()
        return Supervised(
            prepared.model,
            torch.from_numpy(labels),
            views=views,
            label_smoothing=settings.label_smoothing,
            class_weights_K=count_weights(settings, counts) if is_weighted else None,
            mixing=mixing,
            penalty=prepared.penalty,
        )
    targets = trained_targets(images, train, scale=scale_of(images, train))
    name, loss = _loss(settings, images.source.task, targets)
    return Targeted(
        prepared.model,
        torch.from_numpy(targets),
        views=views,
        loss=loss,
        name=name,
        mixing=mixing,
        penalty=prepared.penalty,
    )


def build_mixing(settings: FinetuneSettings) -> Mixing | None:
    """How images are mixed with one another; None leaves them apart."""
    mix = settings.mix
    return Mixing(mix.mixup, mix.cutmix, settings.seed) if mix.mixup > 0 or mix.cutmix > 0 else None


def build_label_order(settings: FinetuneSettings, images: LabelledImages, train: Indices) -> Order:
    """In which order the images `train` come, by their numbers in the store."""
    if settings.imbalance.sampling == "none":
        return permute
    if images.source.task == "classes":
        return BalancedOrder(class_groups(images.labels[train]))
    return BalancedOrder(label_groups(images.targets[train]))


def scale_of(images: LabelledImages, train: Indices) -> NumberScale | None:
    """How the targets of a regression are standardised, by those trained on; None for other tasks."""
    return number_scale(images.targets[train]) if images.source.task == "regression" else None


def trained_targets(images: LabelledImages, indices: Indices, *, scale: NumberScale | None) -> NDArray[np.float32]:
    """Targets as training and its val see them: numbers standardised."""
    targets = images.targets[indices]
    return targets if scale is None else scale.standardise(targets)


def read_val(images: LabelledImages, val: Indices, *, contract: InputContract, scale: NumberScale | None) -> ValSet:
    """The images `val` that can be read, with what they are judged by."""
    inputs = images.inputs(val, contract)
    if images.source.task == "classes":
        return ValSet(inputs.pixels, images.labels[inputs.indices])
    return ValSet(inputs.pixels, trained_targets(images, inputs.indices, scale=scale))


def _loss(
    settings: FinetuneSettings, task: str, targets: NDArray[np.float32]
) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    if task == "regression":
        if settings.regression.loss == "mse":
            return "squared_error", masked_squared_error
        return "huber", partial(masked_huber, delta=settings.regression.delta)
    weights = None
    if settings.imbalance.weights != "none":
        pairs = [((column == 0).sum(), (column == 1).sum()) for column in targets.T]
        weights = torch.stack([count_weights(settings, [int(n) for n in pair]) for pair in pairs])
    return "binary_cross_entropy", partial(
        masked_binary_cross_entropy, label_smoothing=settings.label_smoothing, class_weights_K2=weights
    )


def count_weights(settings: FinetuneSettings, counts: list[int]) -> Tensor:
    """float32 [K], weights of classes that have so many images."""
    return class_weights(counts, how=settings.imbalance.weights, beta=settings.imbalance.beta).float()
