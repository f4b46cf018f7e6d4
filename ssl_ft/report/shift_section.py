"""The section of the page about a shift: reads `shift.json`, puts it into sentences, a table and a figure.

Numbers are the stage's; nothing is computed anew but the figure's axis.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from ssl_ft.report import formats
from ssl_ft.report.svg import INK, RULE, SERIES, render

_SPACES = {"encoder": "features of the encoder", "pixels": "raw small pixels", "statistics": "image statistics"}
_TESTS = {"classifier": "classifier", "mmd": "squared MMD", "frechet": "Fréchet distance"}
# Longer bars would squeeze all others to nothing.
_MOST_DEVIATIONS = 4.0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TestRow(_Record):
    """One test on one kind of features."""

    space: str
    name: str
    value: float
    null: float
    p_value: float
    p_holm: float


class DifferenceRow(_Record):
    """One statistic of the images."""

    name: str
    pool: float
    target: float
    difference: float
    low: float
    high: float
    spread: float


class ShiftFile(_Record):
    """What the stage shift wrote."""

    level: float
    is_shifted: bool
    effect: float
    grade: str
    advice: str
    accounts: tuple[str, ...]
    tests: tuple[TestRow, ...]
    differences: tuple[DifferenceRow, ...]


@dataclass(frozen=True)
class ShiftView:
    """What the template prints; rows are cells of text."""

    verdict: str
    advice: str
    accounts: tuple[str, ...]
    svg: Markup
    test_head: tuple[str, ...]
    test_rows: tuple[tuple[str, ...], ...]
    difference_head: tuple[str, ...]
    difference_rows: tuple[tuple[str, ...], ...]


def read_shift(path: Path, _problems: list[str]) -> ShiftFile:
    """The file's content.

    Raises:
        ValueError: it is not what the stage writes.
    """
    return ShiftFile.model_validate(json.loads(path.read_text("utf-8")))


def shift_sentence(found: ShiftFile) -> str:
    """The verdict in a sentence."""
    if not found.is_shifted:
        return f"No shift is shown at a false-alarm rate of {formats.percent(found.level)} for all tests together."
    least = min(test.p_holm for test in found.tests)
    return (
        f"The target's images are not like the pool's: the shift is {found.grade} (effect "
        f"{formats.number(found.effect)}, corrected p-value {formats.number(least)})."
    )


def shift_view(found: ShiftFile, *, prefix: str) -> ShiftView:
    """Everything the section prints; `prefix` goes before the figure's ids."""
    tests = tuple(
        (
            f"{_TESTS.get(t.name, t.name)}, {_SPACES.get(t.space, t.space)}",
            formats.percent(t.value) if t.name == "classifier" else formats.number(t.value),
            formats.percent(t.null) if t.name == "classifier" else formats.number(t.null),
            formats.number(t.p_value),
            formats.number(t.p_holm),
        )
        for t in found.tests
    )
    rows = tuple(
        (
            _title(d.name),
            formats.number(d.pool),
            formats.number(d.target),
            f"{formats.number(d.difference)} ({formats.number(d.low)} to {formats.number(d.high)})",
        )
        for d in found.differences
    )
    return ShiftView(
        shift_sentence(found),
        f"{found.advice}.",
        found.accounts,
        Markup(_figure(found, prefix=prefix)),
        ("Test", "Measured", "Two parts of one set", "p-value", "corrected"),
        tests,
        ("Statistic", "Pool", "Target", f"Difference (95{formats.NBSP}% interval)"),
        rows,
    )


def _title(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _figure(found: ShiftFile, *, prefix: str) -> str:
    """Differences of image statistics in standard deviations of the pool's images, with intervals."""
    rows = [d for d in found.differences if d.spread > 0]

    def scaled(value: float, row: DifferenceRow) -> float:
        return max(-_MOST_DEVIATIONS, min(_MOST_DEVIATIONS, value / row.spread))

    def draw(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(reversed(rows)):
            axes.hlines(place, scaled(row.low, row), scaled(row.high, row), color=SERIES[0], linewidth=2)
            axes.plot(scaled(row.difference, row), place, color=SERIES[0], marker="o", markersize=5)
        axes.set_yticks(range(len(rows)), [_title(row.name) for row in reversed(rows)])
        axes.set_ylim(-0.6, max(1, len(rows)) - 0.4)
        axes.tick_params(color=RULE)
        axes.set_xlabel("target less pool, in standard deviations of the pool's images")

    spoken = "; ".join(f"{_title(row.name)} {formats.number(scaled(row.difference, row))}" for row in rows)
    return render(
        draw,
        size=(480, 60 + 18 * max(1, len(rows))),
        font_size=11.5,
        prefix=prefix,
        description=formats.printable(f"Differences of image statistics in standard deviations: {spoken}."),
    )
