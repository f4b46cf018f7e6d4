"""Which strategy to start with before anything is trained, and how good that advice was where strategies were compared.

A rule of four quadrants, few or many labels × near to or far from the pretraining pool, in plain sight; numbers in,
strategy and reasons out. Nothing is measured, trained or read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.comparison import Resampled
from ssl_ft.evaluate.metrics import Estimate, Floats, interval_of
from ssl_ft.evaluate.shift import grade

# Fewer labels than this for each class are few: all weights of an encoder have more freedom than they can fix.
FEW_PER_CLASS = 20.0
# Labels in all from which a training from scratch is worth a try, as a share of the images pretrained on.
MANY_OF_POOL = 1.0

# (few labels, near) -> strategies in order of preference; the first at hand is advised. Features that fit need no more
# than a head (Kumar et al. 2022: moving all weights on few labels distorts them); the further the images and the more
# the labels, the more may move (Yosinski et al. 2014).
QUADRANTS: dict[tuple[bool, bool], tuple[str, ...]] = {
    (True, True): ("probe",),
    (True, False): ("probe_then_finetune", "lora", "probe"),
    (False, True): ("probe_then_finetune", "layer_decay", "full"),
    (False, False): ("full",),
}
# What is advised where a quadrant's own strategies are not at hand.
_PLAIN = ("probe", "full")


@dataclass(frozen=True)
class Situation:
    """What is known before training.

    Attributes:
        num_labels: of the budget, all classes together.
        num_classes: C.
        shift: effect of `shift.py` between the images and the pretraining pool; None where it was not measured.
        pool_images: images pretrained on; None where not known.
        input_size: side of the encoder's input in pixels.
        num_parameters: of the encoder.
    """

    num_labels: int
    num_classes: int
    shift: float | None
    pool_images: int | None
    input_size: int
    num_parameters: int

    @property
    def per_class(self) -> float:
        """Labels per class, a mean."""
        return self.num_labels / self.num_classes


@dataclass(frozen=True)
class Advice:
    """A strategy to start with.

    Attributes:
        strategy: its name.
        quadrant: such as "few labels, near".
        reasons: sentences with the numbers it goes by.
        instead: what to try next, best first.
        is_by_rule: whether the rule names it; else it is merely the first at hand.
    """

    strategy: str
    quadrant: str
    reasons: tuple[str, ...]
    instead: tuple[str, ...]
    is_by_rule: bool = True


@dataclass(frozen=True)
class Score:
    """What following the advice cost in one comparison at one budget.

    Attributes:
        data, encoder, budget: where.
        advised: the model advised, best: the one that was best.
        regret: accuracy of the best less that of the advised, with its interval; 0 where they are the same.
        is_as_good: whether it is the best, or not shown to be worse.
        is_by_rule: whether the rule names it; else it is merely the first of what was compared.
        has_few_draws: whether the comparison had too few draws to show anything.
    """

    data: str
    encoder: str
    budget: Budget
    advised: str
    best: str
    regret: Estimate
    is_as_good: bool
    is_by_rule: bool = True
    has_few_draws: bool = False


@dataclass(frozen=True)
class Scores:
    """The rule held against comparisons.

    Attributes:
        scores: one a comparison, encoder and budget.
        regret: mean of theirs.
        as_good: share of pieces of advice that are the best or not shown to be worse.
        others: mean regret of always taking one strategy, by its name.
    """

    scores: tuple[Score, ...]
    regret: Estimate
    as_good: float
    others: tuple[tuple[str, Estimate], ...]


def is_near(shift: float | None) -> bool:
    """Whether images lie near the pool: not "far" by `shift.py`. Not measured counts as near, and is said."""
    return shift is None or grade(shift) != "far"


def advise(situation: Situation, *, available: Sequence[str]) -> Advice:
    """The strategy to start with.

    Args:
        situation: what is known.
        available: strategies at hand, one at least, in the order of the table of strategies.
    """
    few, near = situation.per_class < FEW_PER_CLASS, is_near(situation.shift)
    own = QUADRANTS[few, near]
    wanted = [name for name in own if name in available]
    # Where a quadrant's own are not at hand, the plain ones are.
    wanted += [name for name in _PLAIN if name in available and name not in wanted]
    reasons = _reasons(situation, few=few, near=near)
    is_by_rule = bool(wanted)
    if not is_by_rule:
        # What makes no use of the encoder comes last.
        wanted = sorted(available, key=lambda name: name == "scratch")[:1]
        missing = ", ".join(dict.fromkeys((*own, *_PLAIN)))
        reasons.append(f"the rule would name one of {missing}, and none is at hand: {wanted[0]} is the first that is")
    assert wanted, "no strategy is at hand"
    quadrant = f"{'few' if few else 'many'} labels, {'near' if near else 'far'}"
    return Advice(wanted[0], quadrant, tuple(reasons), tuple(wanted[1:]), is_by_rule)


def _reasons(situation: Situation, *, few: bool, near: bool) -> list[str]:
    amount = "few" if few else "many"
    reasons = [
        f"{situation.num_labels:,} labels of {situation.num_classes} classes are {situation.per_class:.3g} a class, "
        f"{amount}: the line is at {FEW_PER_CLASS:g}"
    ]
    if situation.shift is None:
        reasons.append("the shift from the pretraining pool was not measured; near is taken for granted")
    else:
        where = "near" if near else "far"
        reasons.append(
            f"the shift from the pretraining pool has an effect of {situation.shift:.2f}, which counts as {where}"
        )
    freedom = situation.num_parameters / max(1, situation.num_labels)
    reasons.append(
        f"the encoder has {situation.num_parameters:,} parameters, {freedom:,.0f} a label, for inputs of "
        f"{situation.input_size} pixels"
    )
    if situation.pool_images is not None:
        share = situation.num_labels / situation.pool_images
        more = "; compare with scratch, pretraining may have little to add" if share >= MANY_OF_POOL else ""
        reasons.append(f"it was pretrained on {situation.pool_images:,} images, {1 / share:,.3g} a label{more}")
    return reasons


def score(
    resampled: Resampled,
    *,
    data: str,
    encoder: str,
    budget: Budget,
    advised: str,
    best: str,
    is_as_good: bool,
) -> Score:
    """Score one piece of advice against the best model of its encoder at a budget."""
    k = resampled.budgets.index(budget)
    one, other = resampled.models.index(best), resampled.models.index(advised)
    value = float(resampled.values[one, k] - resampled.values[other, k])
    samples = regret_samples(resampled, advised=advised, best=best, budget=budget)
    bounds = interval_of("accuracy_regret", value, samples, level=0.95, lowest=-1.0, n=resampled.num_images)
    return Score(data, encoder, budget, advised, best, bounds, is_as_good)


def regret_samples(resampled: Resampled, *, advised: str, best: str, budget: Budget) -> Floats:
    """Resamples [B] of accuracy(best) − accuracy(advised)."""
    k = resampled.budgets.index(budget)
    one, other = resampled.models.index(best), resampled.models.index(advised)
    return np.asarray(resampled.samples[one, k] - resampled.samples[other, k])


def mean_regret(values: Sequence[float], samples: Sequence[Floats], *, n: int) -> Estimate:
    """Mean regret over pieces of advice, with an interval.

    Pieces on the same images share their resamples, all others are independent: so the mean's resamples are the means
    of theirs, one by one.
    """
    size = min(len(each) for each in samples)  # comparisons may have drawn more or fewer
    joint = np.mean([each[:size] for each in samples], axis=0)
    return interval_of("mean_accuracy_regret", float(np.mean(values)), joint, level=0.95, lowest=-1.0, n=n)
