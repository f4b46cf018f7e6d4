"""Trains a classifier that computes as its 8-bit form will, in the loop of fine-tuning: on the budget, val decides."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_ft.build.compressing import Work
from ssl_ft.build.parts import optimizer_for
from ssl_ft.build.tasks import (
    JUDGES,
    SCORE_NAMES,
    build_label_order,
    build_objective,
    read_val,
    scale_of,
)
from ssl_ft.build.transfer import finetune_plan
from ssl_ft.compress.quantize_pt2e import RoundedModel
from ssl_ft.data.store import Damage
from ssl_ft.errors import UserError
from ssl_ft.transfer.finetune import finetune
from ssl_ft.transfer.strategy import Prepared, scaled_groups


@dataclass(frozen=True)
class RoundedTraining:
    """What training took.

    Attributes:
        step: steps of the weights kept.
        num_val: images of val that could be read.
        damages: training images that could not be read, each replaced by another.
    """

    step: int
    num_val: int
    damages: tuple[Damage, ...]


class _Standardised(nn.Module):
    """A model of numbers in the user's units, its outputs as training sees targets: of mean 0 and spread 1."""

    mean_K: Tensor
    spread_K: Tensor

    def __init__(self, model: nn.Module, mean: NDArray[np.float64], spread: NDArray[np.float64]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean_K", torch.from_numpy(mean).float(), persistent=False)
        self.register_buffer("spread_K", torch.from_numpy(spread).float(), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return cast(Tensor, (self.model(images_BCHW) - self.mean_K) / self.spread_K)


def train_rounded(model: RoundedModel, work: Work, *, rate_share: float) -> RoundedTraining:
    """Train the model in place on the budget's labels and leave in it what was best on val.

    Args:
        model: its ranges have seen images.
        work: the labels, and how to train; the strategy of its training does not count.
        rate_share: learning rate of all weights as a share of the training's.

    Raises:
        UserError: nothing to train on.
    """
    images, split, contract = work.images, work.split, work.card.contract
    if not len(split.train):
        raise UserError("quantize.kind=qat trains, and the label budget leaves nothing to train on: raise labels")
    training = work.training
    if training.precision != "float32":
        work.run.note("qat trains in float32: finetune.precision=bf16 would round what it rounds to 8 bits twice")
        training = training.model_copy(update={"precision": "float32"})
    scale, task = scale_of(images, split.train), images.source.task
    trained: nn.Module = model if scale is None else _Standardised(model, scale.mean, scale.spread)
    trained = trained.to(work.device)
    val = read_val(images, split.val, contract=contract, scale=scale)
    batch_size = min(training.batch_size, len(split.train))
    names = dict.fromkeys((name for name, _ in trained.named_parameters()), rate_share)
    groups = scaled_groups(trained, names, weight_decay=training.optim.weight_decay)
    prepared = Prepared(trained, groups, merge=lambda: trained)
    store = images.store(split.train, contract, seed=training.seed)
    fitted = finetune(
        build_objective(training, prepared, images, split.train, contract=contract).to(work.device),
        optimizer_for(training.optim, groups, batch_size=batch_size), store, val,
        prepared=prepared, contract=contract, plan=finetune_plan(training, num_train=len(split.train)),
        batch_size=batch_size, patience=training.patience, patient_until=training.min_steps, device=work.device,
        seed=training.seed,
        should_stop=work.should_stop, on_row=work.on_row, judge=JUDGES[task], score_name=SCORE_NAMES[task],
        order=build_label_order(training, images, split.train),
    )  # fmt: skip
    model.to("cpu").eval()
    return RoundedTraining(fitted.step, len(val.labels), tuple(store.damages))
