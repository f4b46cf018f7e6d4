"""The judgement of features over label budgets: linear probe and kNN, every number with its interval, test scored once.

Takes features, labels and roles; knows no encoder and no file. A budget's val labels are part of it: the probe's
strength is chosen by folds inside the budget (`probe.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate.knn import knn_predict
from ssl_ft.evaluate.metrics import Estimate, estimate
from ssl_ft.evaluate.probe import probe_budget, standardise

Budget = int | float | str


@dataclass(frozen=True, eq=False)
class Judgement:
    """What one set of features reached with one label budget.

    Attributes:
        budget: labels per class, a share, or "all".
        estimates: metrics of the linear probe with intervals over draws and test images.
        knn: the same of kNN's accuracy; None where the budget has fewer labels than neighbours.
        predictions: int64 [draws, N_test] of the probe.
        num_labels: labels of one draw.
        num_votes: kNN classifiers scored.
    """

    budget: Budget
    estimates: list[Estimate]
    knn: Estimate | None
    predictions: NDArray[np.int64]
    num_labels: int
    num_votes: int


def judge(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    roles: Roles,
    *,
    budgets: Sequence[Budget],
    draws: int,
    num_neighbours: int,
    num_classes: int,
    class_names: Sequence[str],
    seed: int,
    on_progress: Callable[[], None] | None = None,
) -> list[Judgement]:
    """Judge features over budgets.

    Labels of a val role join the budget's candidates when the budget is "all": they are labels too.

    Args:
        features: float32 [N, D] of all images.
        labels: int64 [N].
        roles: train, val and test indices.
        budgets: which to judge.
        draws: random draws a budget; "all" has one.
        num_neighbours: k of kNN.
        num_classes: C.
        class_names: for messages.
        seed: of draws, folds and resamples.
        on_progress: called after each fit.
    """
    # Standardising needs no labels, so all training images serve, not the few labelled ones.
    mean, scale = standardise(features[roles.train])
    judgements = []
    for budget in budgets:
        taken = _draws_of(budget, labels, roles, draws=draws, class_names=class_names, seed=seed)
        predictions, confidences, votes = [], [], []
        for number, chosen in enumerate(taken):
            probe = probe_budget(
                features[chosen], labels[chosen], num_classes=num_classes, mean=mean, scale=scale, seed=seed + number
            )
            shares = probe.predict_proba(features[roles.test])
            predictions.append(shares.argmax(1))
            confidences.append(shares.max(1))
            if len(chosen) >= num_neighbours:
                votes.append(_vote(features, labels, chosen, roles.test, k=num_neighbours, num_classes=num_classes))
            if on_progress is not None:
                on_progress()
        truth = labels[roles.test]
        estimates = estimate(
            truth, np.stack(predictions), confidences=np.stack(confidences), num_classes=num_classes, seed=seed
        )
        knn = estimate(truth, np.stack(votes), num_classes=num_classes, seed=seed)[0] if votes else None
        judgements.append(Judgement(budget, estimates, knn, np.stack(predictions), len(taken[0]), len(votes)))
    return judgements


def check_budgets(
    budgets: Sequence[Budget], labels: NDArray[np.int64], roles: Roles, *, class_names: Sequence[str], seed: int
) -> None:
    """Refuse budgets the data cannot pay before any feature is computed.

    Raises:
        UserError: a class has too few labels.
    """
    for budget in budgets:
        if len(set(map(str, budgets))) != len(budgets):
            raise UserError(f"labels={list(budgets)} names a budget twice")
        _draws_of(budget, labels, roles, draws=1, class_names=class_names, seed=seed)


def _draws_of(
    budget: Budget,
    labels: NDArray[np.int64],
    roles: Roles,
    *,
    draws: int,
    class_names: Sequence[str],
    seed: int,
) -> list[NDArray[np.int64]]:
    if isinstance(budget, str):
        return [np.sort(np.concatenate([roles.train, roles.val]))]
    return [
        label_budget(labels, roles.train, per_class=budget, draw=draw, seed=seed, class_names=class_names)
        for draw in range(draws)
    ]


def _vote(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    *,
    k: int,
    num_classes: int,
) -> NDArray[np.int64]:
    votes, _ = knn_predict(
        torch.from_numpy(features[train]),
        torch.from_numpy(labels[train]),
        torch.from_numpy(features[test]),
        k=k,
        num_classes=num_classes,
    )
    predicted: NDArray[np.int64] = votes.numpy()
    return predicted
