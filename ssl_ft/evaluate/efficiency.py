"""What pretraining saves: labels and computing, from accuracies over label budgets. Pure; intervals from resamples.

The curve of accuracy over the logarithm of the labels is made monotone (isotonic regression: more labels do not hurt)
and is linear between budgets. Outside the budgets nothing is known, and that is what is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.comparison import Resampled
from ssl_ft.evaluate.metrics import Floats, Labels

Side = Literal["below", "at", "above"]

# Accuracies are multiples of one over the images and draws; sums of them differ by less than this.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bound:
    """A number of labels, or the end of what was measured: `labels` is then the first or the last budget."""

    labels: float
    side: Side


@dataclass(frozen=True)
class Reach:
    """How many labels a baseline needs for what a model reaches at a budget, all classes together.

    Attributes:
        model, baseline, budget: which; `num_labels` is the budget in labels.
        needed: point estimate.
        low, high: 95 % interval over resamples.
    """

    model: str
    baseline: str
    budget: Budget
    num_labels: int
    needed: Bound
    low: Bound
    high: Bound


@dataclass(frozen=True)
class BreakEven:
    """From how many labels on a baseline is as good as a model; "below": always, "above": not in what was measured."""

    model: str
    baseline: str
    labels: Bound
    low: Bound
    high: Bound


@dataclass(frozen=True)
class Computing:
    """Seconds of a model against those of its baseline at a budget.

    Attributes:
        model, baseline, budget: which.
        pretrain_seconds: spent once, before; core-seconds where the cores are known.
        seconds: to train one classifier.
        baseline_seconds: the same of the baseline.
        classifiers: how many have to be trained until pretraining has saved its own time; None: it never does.
        seconds_per_label: more seconds than the baseline's for each label saved, pretraining paid by one classifier;
            None where no label is saved, or it is not known how many.
    """

    model: str
    baseline: str
    budget: Budget
    pretrain_seconds: float
    seconds: float
    baseline_seconds: float
    classifiers: int | None
    seconds_per_label: float | None


def isotonic(curves: Floats) -> Floats:
    """The nearest curves [..., K] that never fall, in least squares: the max-min formula, for few budgets.

    Value i is max over j <= i of min over k >= i of the mean of j..k (Robertson, Wright & Dykstra 1988, eq. 1.4.3).
    """
    num = curves.shape[-1]
    sums = np.concatenate([np.zeros((*curves.shape[:-1], 1)), np.cumsum(curves, axis=-1)], axis=-1)
    fitted = np.empty_like(curves)
    for i in range(num):
        lowest = [
            np.min([(sums[..., k + 1] - sums[..., j]) / (k + 1 - j) for k in range(i, num)], axis=0)
            for j in range(i + 1)
        ]
        fitted[..., i] = np.max(lowest, axis=0)
    return fitted


def labels_to_reach(num_labels: Labels, curves: Floats, targets: Floats) -> Floats:
    """Labels at which monotone curves reach targets; −inf: with fewer than the least, inf: not with the most.

    Args:
        num_labels: int64 [K], ascending.
        curves: float [B, K], accuracy.
        targets: float [B].

    Returns:
        float [B].
    """
    x, fitted = np.log(num_labels), isotonic(curves)
    found = np.full(len(targets), np.inf)
    found[targets < fitted[:, 0] - _ROUNDING] = -np.inf
    found[np.abs(targets - fitted[:, 0]) <= _ROUNDING] = num_labels[0]
    for i in range(len(x) - 1):
        low, high = fitted[:, i], fitted[:, i + 1]
        is_here = (low + _ROUNDING < targets) & (targets <= high + _ROUNDING)
        share = (targets[is_here] - low[is_here]) / (high - low)[is_here]
        found[is_here] = np.exp(x[i] + np.minimum(share, 1.0) * (x[i + 1] - x[i]))
    return found


def labels_to_catch_up(num_labels: Labels, leads: Floats) -> Floats:
    """Labels from which a lead is gone for good; −inf: there is none at any budget, inf: it lasts beyond the most.

    Args:
        num_labels: int64 [K], ascending.
        leads: float [B, K], accuracy of a model less that of its baseline.

    Returns:
        float [B].
    """
    x = np.log(num_labels)
    found = np.full(len(leads), -np.inf)
    for i in range(len(x) - 1):
        now, then = leads[:, i], leads[:, i + 1]
        is_here = (now > 0) & (then <= 0)
        found[is_here] = np.exp(x[i] + now[is_here] / (now - then)[is_here] * (x[i + 1] - x[i]))
    found[leads[:, -1] > 0] = np.inf
    return found


def reaches(resampled: Resampled, *, baselines: Sequence[str]) -> list[Reach]:
    """For every model that is not its own baseline, at every budget: the labels its baseline needs for the same."""
    place = {model: number for number, model in enumerate(resampled.models)}
    found = []
    for model, baseline in zip(resampled.models, baselines, strict=True):
        if model == baseline:
            continue
        m, b = place[model], place[baseline]
        for k, budget in enumerate(resampled.budgets):
            value = labels_to_reach(resampled.num_labels, resampled.values[b][None], resampled.values[m, k][None])
            samples = labels_to_reach(resampled.num_labels, resampled.samples[b].T, resampled.samples[m, k])
            bounds = _bounds(resampled.num_labels, float(value[0]), samples)
            found.append(Reach(model, baseline, budget, int(resampled.num_labels[k]), *bounds))
    return found


def break_evens(resampled: Resampled, *, baselines: Sequence[str]) -> list[BreakEven]:
    """For every model that is not its own baseline: from how many labels on the baseline is as good."""
    place = {model: number for number, model in enumerate(resampled.models)}
    found = []
    for model, baseline in zip(resampled.models, baselines, strict=True):
        if model == baseline:
            continue
        m, b = place[model], place[baseline]
        value = labels_to_catch_up(resampled.num_labels, (resampled.values[m] - resampled.values[b])[None])
        samples = labels_to_catch_up(resampled.num_labels, (resampled.samples[m] - resampled.samples[b]).T)
        found.append(BreakEven(model, baseline, *_bounds(resampled.num_labels, float(value[0]), samples)))
    return found


def computing(
    reach: Reach, *, pretrain_seconds: float, seconds: float, baseline_seconds: float, margin: float = 0.0
) -> Computing:
    """Computing of a model beside its baseline, with what it saves in labels.

    Args:
        reach: the labels its baseline needs.
        pretrain_seconds: of the pretraining.
        seconds: to train one classifier as the model.
        baseline_seconds: to train one as the baseline.
        margin: seconds a classifier must save to count as saving any.
    """
    gain = baseline_seconds - seconds
    classifiers = int(np.ceil(pretrain_seconds / gain)) if gain > margin else None
    saved = reach.needed.labels - reach.num_labels if reach.needed.side == "at" else 0.0
    per_label = (pretrain_seconds - gain) / saved if saved > 0 else None
    return Computing(
        reach.model, reach.baseline, reach.budget, pretrain_seconds, seconds, baseline_seconds, classifiers, per_label
    )


def _bounds(num_labels: Labels, value: float, samples: Floats) -> tuple[Bound, Bound, Bound]:
    # Order statistics: a mean of two samples may not exist where one is infinite.
    low = min(float(np.quantile(samples, 0.025, method="lower")), value)
    high = max(float(np.quantile(samples, 0.975, method="higher")), value)
    return _bound(num_labels, value), _bound(num_labels, low), _bound(num_labels, high)


def _bound(num_labels: Labels, labels: float) -> Bound:
    if np.isinf(labels):
        return Bound(float(num_labels[0]), "below") if labels < 0 else Bound(float(num_labels[-1]), "above")
    return Bound(labels, "at")
