"""Which of several models is better, at every label budget, and how sure that is: arrays in, numbers out.

All models are scored on the same N test images and learned from the same D draws of labels, so a resample of images
and draws is shared by all of them and by all budgets, and what they share cancels in differences. What pretraining
saves is in `efficiency.py`; nothing here trains, reads files or writes sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.metrics import Floats, Labels, interval_of, resamples
from ssl_ft.evaluate.shift import holm


@dataclass(frozen=True, eq=False)
class Scored:
    """What one model predicted at one budget.

    Attributes:
        model: its name.
        budget: labels per class, a share, or "all".
        num_labels: labels of one draw.
        predictions: int64 [D·R, N]; rows of one draw (R seeds) are neighbours. One draw where the budget is "all".
    """

    model: str
    budget: Budget
    num_labels: int
    predictions: Labels


@dataclass(frozen=True, eq=False)
class Resampled:
    """Accuracies of all models at all budgets under shared resamples.

    Attributes:
        models: M names.
        budgets: K budgets, ascending in their number of labels.
        num_labels: int64 [K].
        values: float [M, K] on all images and draws.
        samples: float [M, K, B], shifted by their bias as the intervals of `metrics.py` are.
        num_images: N.
    """

    models: tuple[str, ...]
    budgets: tuple[Budget, ...]
    num_labels: Labels
    values: Floats
    samples: Floats
    num_images: int


@dataclass(frozen=True)
class Difference:
    """accuracy(model) − accuracy(other) at a budget, in [-1, 1].

    Attributes:
        model, other, budget: what is compared.
        value: on all images and draws.
        low, high: 95 % interval.
        p: two-sided bootstrap p-value.
        p_holm: the same after Holm's correction for all comparisons made.
    """

    model: str
    other: str
    budget: Budget
    value: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Verdict:
    """Which model to take at a budget.

    Attributes:
        budget: labels per class, a share, or "all".
        best: the model of the highest accuracy.
        share_best: share of resamples in which it is the best.
        share_within: share of resamples in which it is within the tolerance of the best.
        as_good: models not shown to be worse than it (`is_shown`), the better first.
    """

    budget: Budget
    best: str
    share_best: float
    share_within: float
    as_good: tuple[str, ...]


# A p-value below this after correction counts as shown.
LEVEL = 0.05
# Draws below which nothing does: the resamples of so few vary too little, so intervals are narrow and p-values small.
FEWEST_DRAWS = 5


def resample(
    labels: Labels, scored: Sequence[Scored], *, seed: int, num_resamples: int = 5000, repeats: int = 1
) -> Resampled:
    """Accuracies of every model at every budget under resamples of test images and draws that all of them share.

    Draw d of a smaller budget lies inside draw d of a larger one, so its weight is shared over budgets too.

    Args:
        labels: int64 [N].
        scored: every model at every budget, once.
        seed: of the resamples; the same as in `metrics.estimate` gives the same ones.
        num_resamples: B.
        repeats: R, seeds trained on each draw.
    """
    models = tuple(dict.fromkeys(each.model for each in scored))
    sizes = {each.budget: each.num_labels for each in scored}
    budgets = tuple(sorted(sizes, key=lambda budget: sizes[budget]))
    by_place = {(each.model, each.budget): each.predictions for each in scored}
    assert len(by_place) == len(scored) == len(models) * len(budgets), "every model at every budget, once"
    rows = max(len(each.predictions) for each in scored)
    hits = [[(by_place[model, budget] == labels).astype(np.float64) for budget in budgets] for model in models]
    values = np.array([[each.mean() for each in row] for row in hits])
    blocks = []
    for image_weights, row_weights in resamples(
        len(labels), rows, num_resamples=num_resamples, seed=seed, repeats=repeats
    ):
        share = image_weights / len(labels)
        blocks.append(np.array([[_weighed(each @ share, row_weights, repeats) for each in row] for row in hits]))
    samples = np.concatenate(blocks, axis=2)
    samples += (values - samples.mean(axis=2))[:, :, None]
    return Resampled(models, budgets, np.array([sizes[b] for b in budgets]), values, samples, len(labels))


def _weighed(scores: Floats, row_weights: Floats, repeats: int) -> Floats:
    """Scores [rows, B] of one model averaged by row weights [B, rows]; "all" labels have one draw."""
    weights = row_weights if len(scores) == row_weights.shape[1] else np.full((scores.shape[1], repeats), 1 / repeats)
    return np.asarray(np.einsum("rb,br->b", scores, weights))


def p_value(samples: Floats) -> float:
    """Two-sided bootstrap p-value of "the difference is 0" from its resamples [B].

    It inverts the percentile interval: twice the share of resamples on the rarer side of 0, both counts plus one
    (Davison & Hinkley 1997, eq. 4.11 and sec. 5.4), so it is never 0 and its resolution is 2 / (B + 1).
    """
    rarer = min(int(np.sum(samples <= 0)), int(np.sum(samples >= 0)))
    return min(1.0, 2 * (rarer + 1) / (len(samples) + 1))


def differences(resampled: Resampled, *, baselines: Sequence[str]) -> list[Difference]:
    """Every model against the baseline, and the best of each budget against every other; one family for Holm.

    The best was found on the same images, which flatters its differences a little; Holm's correction over all of them
    and the shares of `Verdict` are there to be read beside.

    Args:
        resampled: the accuracies.
        baselines: for each model, in order, the model it is held against; itself where it is a baseline.
    """
    place = {model: number for number, model in enumerate(resampled.models)}
    pairs: dict[tuple[int, int, int], None] = {}
    for budget in range(len(resampled.budgets)):
        best = int(resampled.values[:, budget].argmax())
        against = [(place[model], place[base]) for model, base in zip(resampled.models, baselines, strict=True)]
        against += [(best, other) for other in range(len(resampled.models))]
        for one, other in against:
            # Where the baseline is the best, its lead over a model is that model's comparison seen from the other side.
            if one != other and (other, one, budget) not in pairs:
                pairs[one, other, budget] = None
    found = [_difference(resampled, *pair) for pair in pairs]
    corrected = holm([each.p for each in found])
    return [
        Difference(d.model, d.other, d.budget, d.value, d.low, d.high, d.p, p)
        for d, p in zip(found, corrected, strict=True)
    ]


def find_difference(found: Sequence[Difference], model: str, other: str, *, budget: Budget) -> Difference | None:
    """The difference of two models as model − other, whichever way round it was compared; None where it was not."""
    for d in found:
        if d.budget == budget and (d.model, d.other) == (model, other):
            return d
        if d.budget == budget and (d.model, d.other) == (other, model):
            return Difference(model, other, budget, -d.value, -d.high, -d.low, d.p, d.p_holm)
    return None


def has_few_draws(budget: Budget, *, num_draws: int) -> bool:
    """Whether a budget had too few draws to show anything; of all labels there is one draw and no luck in it."""
    return budget != "all" and num_draws < FEWEST_DRAWS


def is_shown(difference: Difference, *, num_draws: int) -> bool:
    """Whether a difference counts as real: its corrected p-value is small, and comes from enough draws."""
    return difference.p_holm < LEVEL and not has_few_draws(difference.budget, num_draws=num_draws)


def _difference(resampled: Resampled, one: int, other: int, budget: int) -> Difference:
    value = float(resampled.values[one, budget] - resampled.values[other, budget])
    samples = resampled.samples[one, budget] - resampled.samples[other, budget]
    bounds = interval_of("accuracy_difference", value, samples, level=0.95, lowest=-1.0, n=resampled.num_images)
    p = p_value(samples)
    names = resampled.models
    return Difference(names[one], names[other], resampled.budgets[budget], value, bounds.low, bounds.high, p, p)


def best_shares(resampled: Resampled, *, tolerance: float) -> tuple[Floats, Floats]:
    """Shares of resamples, float [M, K] each, in which a model is the best, and within `tolerance` of the best.

    Models that share the highest accuracy of a resample share that resample.
    """
    highest = resampled.samples.max(axis=0)
    is_best = resampled.samples >= highest - 1e-12
    is_within = resampled.samples >= highest - tolerance - 1e-12
    return (is_best / is_best.sum(axis=0)).mean(axis=2), is_within.mean(axis=2)


def verdicts(resampled: Resampled, found: Sequence[Difference], *, tolerance: float, num_draws: int) -> list[Verdict]:
    """The model to take at each budget, and how sure that is.

    Args:
        resampled: the accuracies.
        found: what `differences` gave for them.
        tolerance: accuracy that does not matter, such as 0.01.
        num_draws: of each budget but "all".
    """
    best_share, within_share = best_shares(resampled, tolerance=tolerance)
    given = []
    for number, budget in enumerate(resampled.budgets):
        values = resampled.values[:, number]
        best = int(values.argmax())
        name = resampled.models[best]
        order = [resampled.models[m] for m in np.argsort(-values, kind="stable") if m != best]
        leads = {other: find_difference(found, name, other, budget=budget) for other in order}
        as_good = tuple(
            other for other, lead in leads.items() if lead is None or not is_shown(lead, num_draws=num_draws)
        )
        shares = float(best_share[best, number]), float(within_share[best, number])
        given.append(Verdict(budget, name, *shares, as_good))
    return given


def accuracy_regret(resampled: Resampled, model: str, budget: Budget) -> tuple[float, float, float]:
    """Accuracy lost by taking `model` instead of the best at a budget: value, and its 95 % interval over resamples.

    The best is the best of all images and draws; in a resample it may be the worse one, and the regret below 0.
    """
    m, k = resampled.models.index(model), resampled.budgets.index(budget)
    best = int(resampled.values[:, k].argmax())
    value = float(resampled.values[best, k] - resampled.values[m, k])
    samples = resampled.samples[best, k] - resampled.samples[m, k]
    bounds = interval_of("regret", value, samples, level=0.95, lowest=-1.0, n=resampled.num_images)
    return value, bounds.low, bounds.high
