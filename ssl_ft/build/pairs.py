"""Scores two classifiers on the same test images, each once, with the interval of their difference."""

import numpy as np
import torch
from scipy.special import softmax

from ssl_ft.artifact import InputContract
from ssl_ft.build.judging import read_test
from ssl_ft.build.labels import Indices
from ssl_ft.build.transfer import Trained
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.evaluate.metrics import estimate, paired_difference
from ssl_ft.handover import Labelled, as_metrics, training_metrics
from ssl_ft.report.tables import write_confusion
from ssl_ft.result import Metric
from ssl_ft.runlog import RunFolder


def judge_pair(
    subject: tuple[str, Trained],
    baseline: tuple[str, Trained],
    labelled: Labelled,
    test: Indices,
    contract: InputContract,
    *,
    run: RunFolder,
    device: torch.device,
    budget: int | float | str,
    seed: int,
) -> tuple[list[Metric], int, int]:
    """Metrics of both, what their trainings took, and accuracy(subject) − accuracy(baseline) with a paired interval.

    Where both are one and the same model it is scored once, and the difference is exactly 0.

    Returns:
        The metrics, the number of test images, and how often a model was scored on them.
    """
    source = labelled.source
    pixels, truth = read_test(source, test, labelled.data, contract, run=run)
    is_same = subject[1] is baseline[1]
    shares = [
        softmax(compute_outputs(one.model, pixels, contract, device=device, batch_size=256).astype(np.float64), axis=1)
        for _, one in ((baseline,) if is_same else (subject, baseline))
    ]
    shares = shares * 2 if is_same else shares
    predicted = [share.argmax(1)[None] for share in shares]
    metrics: list[Metric] = []
    for (name, trained), share, guess in zip((subject, baseline), shares, predicted, strict=True):
        estimates = estimate(
            truth, guess, confidences=share.max(1)[None], num_classes=len(source.class_names), seed=seed
        )
        metrics += as_metrics(estimates, budget=budget, model=name)
        metrics += training_metrics(trained, budget=budget, model=name)
    gain = paired_difference(truth, predicted[0], predicted[1], seed=seed)
    metrics += as_metrics([gain], budget=budget, model=f"{subject[0]} - {baseline[0]}")
    per_class = None if isinstance(budget, str) else budget
    write_confusion(run.path, truth, predicted[0][0], source.class_names, model=subject[0], labels_per_class=per_class)
    return metrics, len(truth), len(shares) - int(is_same)
