"""Figures of a tuning: scores over training steps, importances, parallel coordinates, and trials at their rungs.

Numbers in, SVG out; what is said beside them is in `tuning_section.py`.
"""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ssl_ft.report import formats
from ssl_ft.report.svg import INK, MUTED, PAGE, RULE, SERIES, render
from ssl_ft.tuning.records import RangeRecord, StudyRecord, TrialRecord
from ssl_ft.tuning.space import plain_words

_WIDE = (480, 300)


def history_figure(study: StudyRecord, *, prefix: str) -> str:
    """SVG of every trial's score over the training steps of all trials so far, and the best so far as a line."""
    steps, points, best = 0, list[tuple[int, float, str]](), list[tuple[int, float]]()
    for trial in study.in_order():
        steps += trial.steps
        value = last_value(trial)
        if value is not None:
            points.append((steps, value, trial.state))
        if trial.state == "complete" and trial.value is not None:
            best.append((steps, max(trial.value, best[-1][1] if best else -math.inf)))

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        for state, marker, colour in (("pruned", "x", MUTED), ("complete", "o", SERIES[0])):
            own = [(x, y) for x, y, kind in points if kind == state]
            axes.plot(*_columns(own), color=colour, linestyle="none", marker=marker, markersize=5)
        line = [*best, *([(steps, best[-1][1])] if best else [])]
        axes.step(*_columns(line), where="post", color=SERIES[1])
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _score_axis(axes, study)
        axes.set_xlabel("training steps of all trials")

    ends = f"best {formats.measured(study.score, best[-1][1])}" if best else "no trial was completed"
    description = f"Scores of {len(points)} trials over {steps:,} training steps; {ends}."
    return render(draw, size=_WIDE, font_size=11.5, prefix=prefix, description=description)


def importance_figure(study: StudyRecord, *, prefix: str) -> str:
    """SVG of bars: what share of the variance of scores each setting explains."""
    rows = sorted(study.importances.items(), key=lambda pair: (pair[1], pair[0]))

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.barh(range(len(rows)), [100 * share for _, share in rows], color=SERIES[0], height=0.6)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}{formats.NBSP}%"))
        axes.set_xlim(0, 100)
        axes.tick_params(color=RULE)

    spoken = ", ".join(f"{name} {formats.percent(share)}" for name, share in reversed(rows))
    return render(
        draw,
        size=(480, 60 + 24 * max(1, len(rows))),
        font_size=11.5,
        prefix=prefix,
        description=formats.printable(f"Importance of settings: {spoken}."),
    )


def parallel_figure(study: StudyRecord, *, prefix: str) -> str:
    """SVG with an axis for each setting and one for the score; a line is a trial, the best one drawn out."""
    trials = [(last_value(trial), trial) for trial in study.trials if len(trial.settings) == len(study.space)]
    known = sorted(((value, trial) for value, trial in trials if value is not None), key=lambda pair: pair[0])
    low, high = (known[0][0], known[-1][0]) if known else (0.0, 1.0)

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        axes.grid(visible=False)
        axes.set_axis_off()
        for value, trial in known:
            heights = [place_on(own, trial.settings.get(own.name)) for own in study.space]
            heights.append((value - low) / (high - low) if high > low else 0.5)
            is_best = trial.number == study.best
            colour = SERIES[1] if is_best else SERIES[0] if trial.state == "complete" else MUTED
            axes.plot(
                range(len(heights)), heights, color=colour, linewidth=2.4 if is_best else 0.9,
                alpha=1 if is_best else 0.45, zorder=3 if is_best else 2,
            )  # fmt: skip
        names = [*(own.name for own in study.space), study.score.replace("_", " ")]
        marked = [*map(_marks, study.space), _score_marks(study, low, high)]
        for place, (name, marks) in enumerate(zip(names, marked, strict=True)):
            axes.axvline(place, ymin=0.08, ymax=0.92, color=INK, linewidth=0.8)
            axes.text(place, 1.09, name, ha="center", va="bottom", weight="bold", parse_math=False)
            for height, text in marks:
                axes.text(
                    place + 0.03, height, text, va="center", color=INK, zorder=4, parse_math=False,
                    bbox={"facecolor": PAGE, "edgecolor": "none", "alpha": 0.75, "pad": 1},
                )  # fmt: skip
        axes.set_ylim(-0.095, 1.095)
        axes.set_xlim(-0.3, len(names) - 0.5)

    return render(
        draw,
        size=(max(480, 110 * (len(study.space) + 1)), 300),
        font_size=11,
        prefix=prefix,
        description=formats.printable(f"Settings and score of {len(known)} trials as parallel coordinates."),
    )


def rung_figure(study: StudyRecord, *, prefix: str) -> str:
    """SVG of each trial's score over its own steps, with lines at the rungs where trials were judged."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        for rung in study.rungs:
            axes.axvline(rung, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        for trial in study.trials:
            is_best = trial.number == study.best
            colour = SERIES[1] if is_best else SERIES[0] if trial.state == "complete" else MUTED
            axes.plot(
                *_columns(trial.reports), color=colour, linewidth=2.2 if is_best else 0.9, alpha=1 if is_best else 0.6,
                marker="o", markevery=[-1] if trial.reports else None, markersize=3, zorder=3 if is_best else 2,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.minorticks_off()
        if study.rungs:
            ends = [max((step for step, _ in trial.reports), default=0) for trial in study.trials]
            marks = [*study.rungs, *([max(ends)] if max(ends, default=0) > study.rungs[-1] else [])]
            axes.set_xticks(marks)
        _score_axis(axes, study)
        axes.set_xlabel("training steps of the trial")

    counts = ", ".join(f"{number} after {rung} steps" for rung, number in passed(study))
    description = (
        f"Scores of trials over their steps. Trials that went on: {counts}." if counts else "Scores of trials."
    )
    return render(draw, size=_WIDE, font_size=11.5, prefix=prefix, description=description)


def passed(study: StudyRecord) -> list[tuple[int, int]]:
    """(steps of a rung, trials that went on from there)."""
    return [
        (rung, sum(trial.steps > rung and not _fell(trial, rung) for trial in study.trials)) for rung in study.rungs
    ]


def last_value(trial: TrialRecord) -> float | None:
    """A trial's score: its value, or what it last reported; None where it reported nothing."""
    if trial.value is not None:
        return trial.value
    return trial.reports[-1][1] if trial.reports else None


def place_on(own: RangeRecord, value: Any) -> float:
    """Where a value stands on its axis, in [0, 1]."""
    if own.ends is None:
        return list(own.choices).index(value) / max(1, len(own.choices) - 1)
    low, high = own.ends
    if own.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _fell(trial: TrialRecord, rung: int) -> bool:
    """Whether a pruned trial ended at this rung: at its first evaluation after so many steps."""
    seen = [step for step, _ in trial.reports if step >= rung]
    return trial.state == "pruned" and bool(seen) and trial.steps <= seen[0]


def _marks(own: RangeRecord) -> list[tuple[float, str]]:
    if own.ends is None:
        return [(place_on(own, choice), formats.printable(plain_words(choice))) for choice in own.choices]
    return [(0.0, f"{own.ends[0]:g}"), (1.0, f"{own.ends[1]:g}")]


def _score_marks(study: StudyRecord, low: float, high: float) -> list[tuple[float, str]]:
    ends = [(0.0, low), (1.0, high)] if high > low else [(0.5, low)]
    return [(height, formats.measured(study.score, value)) for height, value in ends]


def _columns(points: Any) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _score_axis(axes: Any, study: StudyRecord) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if formats.is_share(study.score):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}{formats.NBSP}%"))
