"""The one time a fine-tuned model meets the test split: its scores by task, and the tables that go with them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.config import FinetuneSettings
from ssl_ft.errors import UserError
from ssl_ft.evaluate.augmented import mean_outputs, reading_contract
from ssl_ft.evaluate.metrics import estimate
from ssl_ft.evaluate.target_metrics import TargetEstimate, estimate_labels, estimate_numbers
from ssl_ft.report.tables import write_confusion
from ssl_ft.report.target_tables import write_label_table, write_number_table, write_predictions
from ssl_ft.result import Metric
from ssl_ft.runlog import RunFolder

_BATCH = 256


@dataclass(frozen=True)
class Scored:
    """What test said.

    Attributes:
        metrics: rows of `result.json`.
        num_images: test images that could be read.
    """

    metrics: list[Metric]
    num_images: int


def score_test(
    settings: FinetuneSettings,
    model: nn.Module,
    images: LabelledImages,
    test: Indices,
    *,
    contract: InputContract,
    device: torch.device,
    run: RunFolder,
) -> Scored:
    """Score the model on the test images and write the tables of its task into the run folder.

    Raises:
        UserError: images that break the contract, or too many damaged ones.
    """
    inputs = images.inputs(test, reading_contract(contract, how=settings.tta))
    run.leave_out_damaged(inputs.damaged)
    if not len(inputs.indices):
        raise UserError(f"{images.source.location}: not one of its test images can be read; mend them first")
    task, names = images.source.task, images.output_names
    outputs = mean_outputs(
        model, inputs.pixels, contract, task=task, how=settings.tta, device=device, batch_size=_BATCH
    )
    if task == "classes":
        metrics = _score_classes(settings, images.labels[inputs.indices], outputs, names, run=run)
        return Scored(metrics, len(inputs.indices))
    targets = images.targets[inputs.indices]
    estimators = {"multi_label": estimate_labels, "regression": estimate_numbers}
    estimates = estimators[task](targets, outputs[None].astype(np.float64), names=names, seed=settings.seed)
    write_predictions(run.path, targets, outputs, names, task=task)
    if task == "multi_label":
        write_label_table(run.path, targets, outputs, names, estimates)
    else:
        write_number_table(run.path, names, estimates)
    return Scored([_metric(settings, each) for each in estimates], len(inputs.indices))


def _score_classes(
    settings: FinetuneSettings, truth: Indices, shares: np.ndarray, names: tuple[str, ...], *, run: RunFolder
) -> list[Metric]:
    predicted, confidences = shares.argmax(1), shares.max(1).astype(np.float64)
    estimates = estimate(
        truth, predicted[None], confidences=confidences[None], num_classes=len(names), seed=settings.seed
    )
    budget = None if isinstance(settings.labels, str) else settings.labels
    write_confusion(run.path, truth, predicted, names, model=settings.strategy, labels_per_class=budget)
    return [_metric(settings, TargetEstimate(None, each)) for each in estimates]


def _metric(settings: FinetuneSettings, found: TargetEstimate) -> Metric:
    e = found.estimate
    return Metric(
        name=e.name,
        value=e.value,
        low=e.low,
        high=e.high,
        n=e.n,
        split="test",
        labels_per_class=None if isinstance(settings.labels, str) else settings.labels,
        model=settings.strategy,
        target=found.target,
    )
