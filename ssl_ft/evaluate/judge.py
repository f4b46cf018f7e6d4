"""The judgement of features over label budgets: linear probe and kNN, every number with its interval, test scored once.

Takes features, labels and roles; knows no encoder and no file. A budget's val labels are part of it: the probe's
strength is chosen by folds inside the budget (`probe.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.data.permutation import permute
from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate.knn import knn_predict
from ssl_ft.evaluate.metrics import Estimate, estimate
from ssl_ft.evaluate.probe import probe_budget, standardise
from ssl_ft.seeding import derive_seed

Budget = int | float | str

# Training images whose features standardise: more would not move a mean by a hundredth of its feature's spread.
MOST_STANDARDISING = 10_000


@dataclass(frozen=True, eq=False)
class Drawn:
    """Which training images a judgement needs, chosen before their features are computed.

    Attributes:
        taken: for each budget the labelled images of each draw, int64 [L].
        standardising: int64 [S], images whose features' mean and spread standardise all others.
    """

    taken: list[list[NDArray[np.int64]]]
    standardising: NDArray[np.int64]

    def needed(self) -> NDArray[np.int64]:
        """All of them once, ascending int64."""
        every = [self.standardising, *(chosen for draws in self.taken for chosen in draws)]
        return np.unique(np.concatenate(every))


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
    drawn: Drawn | None = None,
    on_progress: Callable[[], None] | None = None,
) -> list[Judgement]:
    """Judge features over budgets.

    Labels of a val role join the budget's candidates when the budget is "all": they are labels too. Features are
    standardised by those of all training images, of more than 10,000 by a seeded 10,000; labels play no part in it.

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
        drawn: draws made before, as places in the N rows; None: they are made here, from all training images.
        on_progress: called after each fit.
    """
    if drawn is None:
        drawn = draw_budgets(labels, roles, budgets=budgets, draws=draws, class_names=class_names, seed=seed)
    mean, scale = standardise(features[drawn.standardising])
    judgements = []
    for budget, taken in zip(budgets, drawn.taken, strict=True):
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


def draw_budgets(
    labels: NDArray[np.int64],
    roles: Roles,
    *,
    budgets: Sequence[Budget],
    draws: int,
    class_names: Sequence[str],
    seed: int,
    damaged: NDArray[np.int64] | None = None,
) -> Drawn:
    """The labelled images of every draw of every budget, and those that standardise.

    Args:
        labels: int64 [N].
        roles: train, val and test indices.
        budgets: which to draw.
        draws: random draws a budget; "all" has one.
        class_names: for messages.
        seed: of the draws.
        damaged: int64, training images that cannot be read; others of their class stand in for them.

    Raises:
        UserError: a class has too few labels.
    """
    taken = [
        _draws_of(budget, labels, roles, draws=draws, class_names=class_names, seed=seed, damaged=damaged)
        for budget in budgets
    ]
    train = roles.train
    if len(train) > MOST_STANDARDISING:
        key = derive_seed(seed, "standardise")
        train = np.sort(train[permute(torch.arange(MOST_STANDARDISING), num_items=len(train), key=key).numpy()])
    return Drawn(taken, train)


def _draws_of(
    budget: Budget,
    labels: NDArray[np.int64],
    roles: Roles,
    *,
    draws: int,
    class_names: Sequence[str],
    seed: int,
    damaged: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    if isinstance(budget, str):
        return [np.sort(np.concatenate([roles.train, roles.val]))]
    return [
        label_budget(
            labels, roles.train, per_class=budget, draw=draw, seed=seed, class_names=class_names, damaged=damaged
        )
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
