"""Advice in sentences, and as a file; what following it cost in comparisons. The stage calls this."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssl_ft.evaluate.advice import Advice, Score, Scores
from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.comparison import FEWEST_DRAWS
from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.report import formats
from ssl_ft.report.comparison_words import plain_budget
from ssl_ft.runlog import write_text


def advice_sentences(given: Sequence[tuple[Budget, Advice]]) -> list[str]:
    """One a budget: the strategy, its quadrant, why, and what to try next."""
    return [
        f"With {formats.budget_words(plain_budget(budget))} start with {advice.strategy} ({advice.quadrant}): "
        f"{'; '.join(advice.reasons)}"
        + (f". Try {formats.listed(list(advice.instead))} next" if advice.instead else "")
        + "."
        for budget, advice in given
    ]


def score_sentences(scores: Scores) -> list[str]:
    """What following the advice would have cost, piece by piece, on average, and beside always taking one strategy."""
    lines = [
        f"{each.data}, {each.encoder}, {formats.budget_words(plain_budget(each.budget))}: advised {each.advised}, "
        + ("which was the best" if each.advised == each.best else f"best {each.best}, {_lost(each.regret)}")
        + ("" if each.is_as_good else ", shown to be worse")
        + ("" if each.is_by_rule else " (nothing the rule names was compared: the first that was stands for it)")
        + "."
        for each in scores.scores
    ]
    lines.append(
        f"Over {formats.counted(len(scores.scores), 'choice')} the advice lost {_points(scores.regret)} against the "
        f"best of each, which is only known afterwards; it was the best, or not shown to be worse, in "
        f"{100 * scores.as_good:.0f}{formats.NBSP}%."
    )
    few = sum(each.has_few_draws for each in scores.scores)
    if few:
        lines.append(
            f"{formats.counted(few, 'choice')} of these were compared on fewer than {FEWEST_DRAWS} draws of labels, "
            f"where nothing is shown to be worse: compare with draws={FEWEST_DRAWS} or more."
        )
    if scores.others:
        others = [f"{name} {_points(regret)}" for name, regret in scores.others]
        lines.append(f"Always taking one strategy would have lost: {', '.join(others)}.")
    return lines


def write_advice(run: Path, given: Sequence[tuple[Budget, Advice]], scores: Sequence[Score] | None) -> None:
    """Write `advice.json`."""
    content = {
        "advice": [{"labels_per_class": budget, **asdict(advice)} for budget, advice in given],
        "scores": None if scores is None else [asdict(each) for each in scores],
    }
    write_text(run / "advice.json", json.dumps(content, indent=1) + "\n")


def _lost(regret: Estimate) -> str:
    return f"{_points(regret)} lost"


def _points(regret: Estimate) -> str:
    low, high = (f"{100 * bound:.1f}".replace("-", formats.MINUS) for bound in (regret.low, regret.high))
    return f"{100 * regret.value:.1f} points ({low} to {high})"
