"""Scores two classifiers on the same test images, each once, with the interval of their difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from ssl_ft.artifact import InputContract
from ssl_ft.build.judging import read_test
from ssl_ft.build.labels import Indices
from ssl_ft.build.transfer import Trained
from ssl_ft.config import DataSettings
from ssl_ft.data.source import Source
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.evaluate.metrics import estimate, paired_difference
from ssl_ft.handover import as_metrics, training_metrics
from ssl_ft.report.tables import write_confusion
from ssl_ft.result import Metric
from ssl_ft.runlog import RunFolder

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Contender:
    """A classifier under its name, with the input it takes."""

    name: str
    trained: Trained
    contract: InputContract


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the test images said.

    Attributes:
        metrics: of both, what their trainings took, and the difference.
        num_images: test images.
        num_scored: models scored on them.
    """

    metrics: list[Metric]
    num_images: int
    num_scored: int


def judge_pair(
    subject: Contender,
    baseline: Contender,
    source: Source,
    test: Indices,
    data: DataSettings,
    *,
    run: RunFolder,
    device: torch.device,
    budget: int | float | str,
    seed: int,
) -> Verdict:
    """Score both, and accuracy(subject) − accuracy(baseline) with a paired interval; one model alone is scored once.

    The subject's confusion table is written into the run folder.

    Args:
        subject: what is claimed to be better.
        baseline: what it is held against.
        source: holds the test images, labels numbered as the classifiers' outputs.
        test: int64, which they are.
        data: how they are read.
        run: where damage and tables go.
        device: where to compute.
        budget: labels both were trained on, for the record.
        seed: of the resamples.
    """
    is_same = subject.trained is baseline.trained
    seen = dict[InputContract, tuple[Pixels, Indices]]()  # both often take the same input, and it is read once
    shares = []
    for one in [subject] if is_same else [subject, baseline]:
        if one.contract not in seen:
            seen[one.contract] = read_test(source, test, data, one.contract, run=run)
        shares.append(_shares(one, seen[one.contract][0], device=device))
    num_scored, truth = len(shares), seen[subject.contract][1]
    shares *= 1 + is_same
    predicted = [share.argmax(1) for share in shares]
    metrics: list[Metric] = []
    for one, share, guess in zip((subject, baseline), shares, predicted, strict=True):
        estimates = estimate(
            truth, guess[None], confidences=share.max(1)[None], num_classes=len(source.class_names), seed=seed
        )
        metrics += as_metrics(estimates, budget=budget, model=one.name)
        metrics += training_metrics(one.trained, budget=budget, model=one.name)
    gain = paired_difference(truth, predicted[0][None], predicted[1][None], seed=seed)
    metrics += as_metrics([gain], budget=budget, model=f"{subject.name} over {baseline.name}")
    _write_tables(run, truth, predicted, source.class_names, model=subject.name, budget=budget)
    return Verdict(metrics, len(truth), num_scored)


def _shares(one: Contender, pixels: Pixels, *, device: torch.device) -> NDArray[np.float64]:
    logits = compute_outputs(one.trained.model, pixels, one.contract, device=device, batch_size=256)
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def _write_tables(
    run: RunFolder,
    truth: Indices,
    predicted: Sequence[Indices],
    names: tuple[str, ...],
    *,
    model: str,
    budget: int | float | str,
) -> None:
    per_class = None if isinstance(budget, str) else budget
    write_confusion(run.path, truth, predicted[0], names, model=model, labels_per_class=per_class)
    np.savez_compressed(run.path / "predictions.npz", truth=truth, predicted=predicted[0], baseline=predicted[1])
