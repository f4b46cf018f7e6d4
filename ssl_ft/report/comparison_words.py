"""Sentences about a comparison: which strategy to take at each budget, how sure that is, what pretraining saves."""

from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.comparison import FEWEST_DRAWS, Difference, Verdict, find_difference, has_few_draws, is_shown
from ssl_ft.evaluate.efficiency import Bound, BreakEven, Reach
from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.evaluate.summary import Cost, Summary
from ssl_ft.report import formats
from ssl_ft.report.formats import listed

# Labels per class of the budget to quote where only one is.
_TYPICAL = 10


def plain_budget(budget: Budget) -> formats.Budget:
    """A budget as the report's formats take it: None for all labels."""
    return None if isinstance(budget, str) else budget


def verdict_sentences(summary: Summary) -> list[str]:
    """One a budget: what to take, how sure that is, and what it gains over the baseline."""
    return [_verdict(summary, verdict) for verdict in summary.verdicts]


def finding(summary: Summary) -> str:
    """For the head of a page: the best at each budget, and what that of a typical budget gains."""
    by_model: dict[str, list[str]] = {}
    for each in summary.verdicts:
        by_model.setdefault(each.best, []).append(formats.budget_mark(plain_budget(each.budget)))
    parts = [f"{model} with {listed(budgets)}" for model, budgets in by_model.items()]
    lead = f"Best on {summary.data}: {', '.join(parts)} labels per class."
    typical = min(summary.verdicts, key=lambda v: abs(_per_class(summary, v.budget) - _TYPICAL))
    gain = gain_of(summary, typical.best, typical.budget)
    words = formats.budget_words(plain_budget(typical.budget))
    if gain is None:
        return f"{lead} With {words} none is better than {typical.best}."
    score = accuracy_of(summary, typical.best, typical.budget)
    shown = "" if is_shown(gain, num_draws=summary.num_draws) else ", which is not shown to be real"
    reached = f"{typical.best} reaches {formats.percent(score.value)}"
    return f"{lead} With {words} {reached}, {points_text(gain)} over {gain.other}{shown}."


def _per_class(summary: Summary, budget: Budget) -> float:
    return next(row.num_labels for row in summary.rows if row.budget == budget) / summary.num_classes


def _verdict(summary: Summary, verdict: Verdict) -> str:
    score = accuracy_of(summary, verdict.best, verdict.budget)
    tolerance = formats.number(100 * summary.tolerance)
    unit = "point" if tolerance == "1" else "points"
    bounds = formats.interval("accuracy", score.low, score.high)
    sentences = [
        f"With {formats.budget_words(plain_budget(verdict.budget))} take {verdict.best}: "
        f"{formats.percent(score.value)} ({bounds}), the best in {_share(verdict.share_best)} of resamples and within "
        f"{tolerance} {unit} of the best in {_share(verdict.share_within)}"
    ]
    if has_few_draws(verdict.budget, num_draws=summary.num_draws):
        sentences.append(few_draws_text(summary.num_draws))
    elif verdict.as_good:
        sentences.append(f"Not shown to be worse: {listed(list(verdict.as_good))}")
    else:
        sentences.append("Every other is shown to be worse")
    gain = gain_of(summary, verdict.best, verdict.budget)
    if gain is not None:
        sentences.append(f"Over {gain.other} that is {difference_text(gain, num_draws=summary.num_draws)}")
    reach = next((r for r in summary.reaches if (r.model, r.budget) == (verdict.best, verdict.budget)), None)
    if reach is not None and len(summary.verdicts) > 1:
        sentences.append(_reach_sentence(reach, summary.num_classes))
    return ". ".join(sentences) + "."


def gain_of(summary: Summary, model: str, budget: Budget) -> Difference | None:
    """The difference of a model from its own baseline; None for a baseline."""
    own = next((reach.baseline for reach in summary.reaches if reach.model == model), None)
    return None if own is None else find_difference(summary.differences, model, own, budget=budget)


def few_draws_text(num_draws: int) -> str:
    """Why a comparison of so few draws shows nothing, and what to do; without a full stop."""
    return (
        f"Of {formats.counted(num_draws, 'draw')} intervals come out too narrow and p-values too small: none is shown "
        f"to be better or worse, compare with draws={FEWEST_DRAWS} or more"
    )


def difference_text(difference: Difference, *, num_draws: int) -> str:
    """'+12.9 points (+10.1 to +15.4, p 0.004)'."""
    shown = "" if is_shown(difference, num_draws=num_draws) else ", not shown"
    text = points_text(difference)
    return f"{text[:-1]}, p{formats.NBSP}{p_text(difference.p_holm)}{shown})"


def points_text(difference: Difference) -> str:
    """'+12.9 points (+10.1 to +15.4)'."""
    low, high = (formats.points(bound, 0.0).split(formats.NBSP)[0] for bound in (difference.low, difference.high))
    return f"{formats.points(difference.value, 0.0)} ({low} to {high})"


def p_text(p: float) -> str:
    """'0.004', '1'."""
    return f"{p:.2g}" if p < 1 else "1"


def accuracy_of(summary: Summary, model: str, budget: Budget) -> Estimate:
    """The accuracy of a model at a budget."""
    row = next(row for row in summary.rows if (row.model, row.budget) == (model, budget))
    return next(score for score in row.scores if score.name == "accuracy")


def per_class(bound: Bound, num_classes: int) -> str:
    """Labels per class in words: '21', 'fewer than 2', 'more than 50'."""
    return {"below": "fewer than ", "at": "", "above": "more than "}[bound.side] + _rounded(bound, num_classes)


def per_class_mark(bound: Bound, num_classes: int) -> str:
    """The same in a table: '21', '<2', '>50'."""
    return formats.BOUND_MARKS[bound.side] + _rounded(bound, num_classes)


def _rounded(bound: Bound, num_classes: int) -> str:
    return formats.number(float(f"{bound.labels / num_classes:.3g}"))


def _reach_sentence(reach: Reach, num_classes: int) -> str:
    needed = per_class(reach.needed, num_classes)
    if reach.needed.side == "at":
        needed = f"about {needed}"
    return (
        f"For the same, {reach.baseline} needs {needed} labels per class{_between(reach.low, reach.high, num_classes)}"
    )


def _between(low: Bound, high: Bound, num_classes: int) -> str:
    if low == high:
        return ""
    return f" (95{formats.NBSP}% interval {per_class(low, num_classes)} to {per_class(high, num_classes)})"


def break_even_sentence(even: BreakEven, num_classes: int) -> str:
    """From how many labels on the baseline is as good."""
    where = _between(even.low, even.high, num_classes)
    if even.labels.side == "below":
        return f"{even.model} is ahead of {even.baseline} at no budget measured{where}."
    if even.labels.side == "above":
        most = formats.number(even.labels.labels / num_classes)
        return f"{even.model} is still ahead of {even.baseline} with {most} labels per class{where}."
    at = per_class(even.labels, num_classes)
    return f"{even.baseline} is as good as {even.model} from about {at} labels per class on{where}."


def computing_text(cost: Cost) -> str:
    """When pretraining has paid for itself in computing, in a few words."""
    beside = cost.computing
    if beside is None:
        return ""
    pays = "never" if beside.classifiers is None else f"after {formats.counted(beside.classifiers, 'classifier')}"
    if beside.seconds_per_label is None:
        return pays
    per = "none" if beside.seconds_per_label <= 0 else formats.duration(beside.seconds_per_label)
    return f"{pays}; {per} a label saved"


def pretraining_text(summary: Summary) -> str:
    """Which seconds of pretraining stand beside those of the cells; empty where none are known."""
    sentences = []
    for facts in summary.encoders:
        if facts.pretrain_seconds is None:
            continue
        took = f"The pretraining of {facts.name} took {formats.duration(facts.pretrain_seconds)}"
        if facts.pretrain_cores is None:
            sentences.append(
                f"{took}, on a GPU, another machine or a number of threads that is not known, while a cell computes on "
                "one thread: whether pretraining pays is told from unlike seconds."
            )
        else:
            cores = formats.counted(facts.pretrain_cores, "core")
            sentences.append(f"{took} on {cores}; core-seconds are compared, and a cell computes on one core.")
    return " ".join(sentences)


def _share(share: float) -> str:
    return f"{100 * share:.0f}{formats.NBSP}%"
