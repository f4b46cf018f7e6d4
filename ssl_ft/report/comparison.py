"""The page's section about a comparison: an overview and a curve a model, tables, verdicts. Records for the template.

Sentences are in `comparison_words.py`, what the run folder holds in `comparison_files.py`.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ssl_ft.evaluate.cells import Budget
from ssl_ft.evaluate.comparison import find_difference, has_few_draws
from ssl_ft.evaluate.summary import Row, Summary
from ssl_ft.report import figures, formats
from ssl_ft.report.comparison_words import (
    accuracy_of,
    break_even_sentence,
    computing_text,
    difference_text,
    few_draws_text,
    gain_of,
    p_text,
    per_class_mark,
    plain_budget,
    points_text,
    pretraining_text,
    verdict_sentences,
)
from ssl_ft.report.sections import LegendEntry, PanelView, Table
from ssl_ft.report.svg import INK, MUTED, SERIES, render

# Styles of the page: the model of a panel, and what it is held against.
_OWN, _BASE = 0, 7


@dataclass(frozen=True)
class ComparisonView:
    """One comparison as the template prints it."""

    name: str
    heading: str
    about: str
    verdicts: tuple[str, ...]
    overview: Markup
    panels: tuple[PanelView, ...]
    table: Table
    best: Table
    costs: Table
    pretraining: str
    break_evens: tuple[str, ...]
    left_out: tuple[str, ...]


def comparison_view(summary: Summary, *, name: str, prefix: str) -> ComparisonView:
    """All of one comparison; `prefix` is put before the figures' ids."""
    return ComparisonView(
        name=name,
        heading=summary.data,
        about=_about(summary),
        verdicts=tuple(verdict_sentences(summary)),
        overview=Markup(_overview(summary, prefix=f"{prefix}-all")),
        # With one budget there is no curve, and the overview says all.
        panels=tuple(_panel(summary, model, prefix=f"{prefix}-{n}") for n, model in enumerate(_compared(summary)))
        if len(summary.verdicts) > 1
        else (),
        table=_table(summary),
        best=_against_best(summary),
        costs=_costs(summary),
        pretraining=pretraining_text(summary),
        break_evens=tuple(break_even_sentence(each, summary.num_classes) for each in summary.break_evens),
        left_out=tuple(f"{left.strategy} for {left.encoder}: {left.reason}" for left in summary.left_out),
    )


def _about(summary: Summary) -> str:
    seeds = f" with {summary.num_seeds} seeds each" if summary.num_seeds > 1 else ""
    comparisons = len(summary.differences)
    over = "draws and test images" if summary.num_draws > 1 else "test images; what another draw would give is unknown"
    few = any(has_few_draws(budget, num_draws=summary.num_draws) for budget in _budgets(summary))
    return (
        f"{formats.counted(summary.num_test, 'test image')} of {summary.num_classes} classes, "
        f"{formats.counted(summary.num_draws, 'draw')} of the labels{seeds}. Intervals are 95{formats.NBSP}% over "
        f"{over}. P-values come from {summary.num_resamples:,} paired bootstrap resamples, so none is "
        f"below {2 / (summary.num_resamples + 1):.1g}, and are corrected for {comparisons} comparisons (Holm)."
        + (f" {few_draws_text(summary.num_draws)}." if few else "")
    )


def _models(summary: Summary) -> list[str]:
    return list(dict.fromkeys(row.model for row in summary.rows))


def _compared(summary: Summary) -> list[str]:
    """Models that are held against a baseline, in order."""
    return list(dict.fromkeys(reach.model for reach in summary.reaches))


def _budgets(summary: Summary) -> list[Budget]:
    return [verdict.budget for verdict in summary.verdicts]


def _overview(summary: Summary, *, prefix: str) -> str:
    """SVG: a column a budget, a row a model, accuracy with its interval; the best of a budget is filled."""
    models, budgets = _models(summary), _budgets(summary)
    lowest = [np.mean([accuracy_of(summary, model, b).value for b in budgets]) for model in models]
    order = [models[n] for n in np.argsort(lowest, kind="stable")]
    best = {verdict.budget: verdict.best for verdict in summary.verdicts}
    baselines = {reach.baseline for reach in summary.reaches}

    def draw(figure: Figure) -> None:
        engine = figure.get_layout_engine()
        assert isinstance(engine, ConstrainedLayoutEngine), "the page's figures lay themselves out"
        engine.set(wspace=0.06)
        for axes, budget in zip(np.atleast_1d(figure.subplots(1, len(budgets), sharey=True)), budgets, strict=True):
            for place, model in enumerate(order):
                score = accuracy_of(summary, model, budget)
                colour = SERIES[_BASE] if model in baselines else SERIES[_OWN]
                axes.hlines(place, 100 * score.low, 100 * score.high, color=colour, linewidth=1.6)
                face = colour if model == best[budget] else "none"
                axes.plot(100 * score.value, place, marker="o", markersize=6, color=colour, markerfacecolor=face)
            axes.set_yticks(range(len(order)), [formats.printable(model) for model in order], parse_math=False)
            axes.set_ylim(-0.6, len(order) - 0.4)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}{formats.NBSP}%"))
            axes.set_title(formats.budget_words(plain_budget(budget)), fontsize=11.5, color=INK)
            axes.tick_params(axis="y", labelcolor=INK)

    spoken = "; ".join(
        f"{formats.budget_words(plain_budget(b))}: "
        + ", ".join(f"{model} {formats.percent(accuracy_of(summary, model, b).value)}" for model in reversed(order))
        for b in budgets
    )
    height = 60 + 21 * len(order)
    description = formats.printable(f"Accuracy of each strategy. {spoken}.")
    return render(
        draw, size=(max(560, 150 + 190 * len(budgets)), height), font_size=11.5, prefix=prefix, description=description
    )


def _panel(summary: Summary, model: str, *, prefix: str) -> PanelView:
    """Accuracy over labels of a model beside its baseline."""
    baseline = next(reach.baseline for reach in summary.reaches if reach.model == model)
    numbers = sorted({(row.num_labels / summary.num_classes, row.budget) for row in summary.rows}, key=lambda x: x[0])
    places = [float(np.log(number)) for number, _ in numbers]
    scores = [(accuracy_of(summary, m, b).low, accuracy_of(summary, m, b).high) for m in _models(summary)
              for _, b in numbers]  # fmt: skip
    limits = (100 * min(low for low, _ in scores) - 2, 100 * max(high for _, high in scores) + 2)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for name, style in ((baseline, _BASE), (model, _OWN)):
            _curve(axes, summary, name, [budget for _, budget in numbers], places, style=style)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.set_xticklabels([formats.budget_mark(plain_budget(b)) for _, b in numbers], parse_math=False)
        axes.set_ylim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}{formats.NBSP}%"))
        axes.set_xlabel("labels per class")

    spoken = ", ".join(
        f"{formats.percent(accuracy_of(summary, model, b).value)} with {formats.budget_words(plain_budget(b))} "
        f"({baseline} {formats.percent(accuracy_of(summary, baseline, b).value)})"
        for _, b in numbers
    )
    svg = render(
        draw, size=(250, 190), font_size=11.5, prefix=prefix, description=formats.printable(f"{model}: {spoken}.")
    )
    wins = [formats.budget_mark(plain_budget(v.budget)) for v in summary.verdicts if v.best == model]
    note = f"Best with {formats.listed(wins)} labels per class." if wins else ""
    return PanelView(model, note, Markup(svg), ())


def _curve(axes: Axes, summary: Summary, model: str, budgets: list[Budget], places: list[float], *, style: int) -> None:
    scores = [accuracy_of(summary, model, budget) for budget in budgets]
    value, low, high = (100 * np.array([getattr(s, name) for s in scores]) for name in ("value", "low", "high"))
    is_own = style == _OWN
    axes.fill_between(places, low, high, color=SERIES[style], alpha=0.16 if is_own else 0.1, linewidth=0)
    axes.plot(places, value, color=SERIES[style], linestyle="solid" if is_own else (0, (4, 2)))
    axes.plot(places, value, color=SERIES[style], linestyle="none", marker=figures.MARKERS[style], markersize=5)
    axes.tick_params(colors=MUTED)


def comparison_legend() -> tuple[LegendEntry, ...]:
    """Of the panels: the model, and its baseline."""
    entries = ((_OWN, "this strategy"), (_BASE, "what it is held against"))
    return tuple(LegendEntry(Markup(figures.legend_mark(style)), label) for style, label in entries)


def _table(summary: Summary) -> Table:
    """Every model at every budget, the better first: accuracy, gain over its baseline, and the labels that saves."""
    head = (
        "Labels per class", "Strategy", "Accuracy", "Best in", "Gain over baseline", "p, corrected",
        "Baseline needs, per class",
    )  # fmt: skip
    rows = []
    for budget in _budgets(summary):
        own = [row for row in summary.rows if row.budget == budget]
        for row in sorted(own, key=lambda row: -accuracy_of(summary, row.model, budget).value):
            score, gain = accuracy_of(summary, row.model, budget), gain_of(summary, row.model, budget)
            reach = next((r for r in summary.reaches if (r.model, r.budget) == (row.model, budget)), None)
            bounds = formats.interval("accuracy", score.low, score.high)
            rows.append((
                formats.budget_mark(plain_budget(budget)),
                row.model,
                f"{formats.percent(score.value)} ({bounds})",
                f"{100 * row.share_best:.0f}{formats.NBSP}%",
                "" if gain is None else points_text(gain),
                "" if gain is None else p_text(gain.p_holm),
                "" if reach is None else per_class_mark(reach.needed, summary.num_classes),
            ))  # fmt: skip
    return Table(head, tuple(rows))


def _against_best(summary: Summary) -> Table:
    """How far every other lies behind the best of each budget."""
    rows = []
    for verdict in summary.verdicts:
        for other in _models(summary):
            lead = find_difference(summary.differences, verdict.best, other, budget=verdict.budget)
            if lead is not None:
                words = formats.budget_words(plain_budget(verdict.budget))
                rows.append((words, verdict.best, other, difference_text(lead, num_draws=summary.num_draws)))
    return Table(("Budget", "Best", "Other", "Lead of the best"), tuple(rows))


def _trained_text(row: Row) -> str:
    """Parameters trained, or from the fewest to the most of its cells."""
    fewest = formats.large(row.num_trained)
    return fewest if row.most_trained is None else f"{fewest} to {formats.large(row.most_trained)}"


def _costs(summary: Summary) -> Table:
    head = (
        "Strategy", "Labels per class", "Parameters trained", "Time, choosing included", "Final training", "Memory",
        "Pretraining pays",
    )  # fmt: skip
    trained = {(row.model, row.budget): _trained_text(row) for row in summary.rows}
    rows = tuple(
        (
            cost.model,
            formats.budget_mark(plain_budget(cost.budget)),
            trained[cost.model, cost.budget],
            formats.duration(cost.seconds),
            formats.duration(cost.train_seconds),
            formats.memory(cost.peak_memory_mb),
            computing_text(cost),
        )
        for cost in summary.costs
    )
    return Table(head, rows)
