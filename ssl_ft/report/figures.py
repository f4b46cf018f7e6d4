"""The report's figures: accuracy over labels, learning curves, embedding map, confusion heat map.

Numbers in, SVG text (or PNG bytes) out. Legends and captions are HTML, in the template; theming is in `svg.py`.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from ssl_ft.report import formats
from ssl_ft.report.budgets import NUM_STYLES, Comparison, Series
from ssl_ft.report.extras import Confusion, Curve, Embedding
from ssl_ft.report.formats import Budget
from ssl_ft.report.svg import SERIES, render

# Colour alone never tells two series apart: dash and marker differ too. matplotlib marker codes and dash lengths.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 2), (7, 2, 1.5, 2), (3, 1.5), (), (5, 2), (1.5, 2))
assert len(MARKERS) == len(DASHES) == len(SERIES) == NUM_STYLES, "one colour, dash and marker a style"

# Okabe and Ito's colours without black and yellow, and two more: legible on white and on near-black.
CLASS_COLOURS = ("#0b78bd", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8b7fd6", "#8a8f98")
_CLASS_MARKERS = ("o", "^", "s", "D")
MAX_MAP_NAMES = 24


def _dashes(style: int) -> str | tuple[float, tuple[float, ...]]:
    return (0, DASHES[style]) if DASHES[style] else "solid"


def accuracy_over_labels(comparison: Comparison, *, prefix: str, description: str) -> str:
    """SVG of accuracy (percent) over labels per class (log scale), with 95 % intervals as bars and bands.

    "All labels" stands apart at the right, because how many they are differs from class to class.
    Shares of the labels stand on the same axis where no counts are given, and after the counts otherwise.
    """
    places = _places(comparison.budgets)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, series in enumerate(comparison.series):
            # A few pixels apart, so that bars at the same budget stay legible.
            shift = 0.018 * (index - (len(comparison.series) - 1) / 2)
            _draw_series(axes, series, {budget: place + shift for budget, place in places.items()})
        axes.xaxis.set_major_locator(FixedLocator([places[budget] for budget in comparison.budgets]))
        axes.set_xticklabels([formats.budget_mark(budget) for budget in comparison.budgets], parse_math=False)
        margin = 0.12
        axes.set_xlim(min(places.values()) - margin, max(places.values()) + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}{formats.NBSP}%"))
        has_counts = any(formats.budget_order(budget)[0] == 0 for budget in comparison.budgets)
        axes.set_xlabel("labels per class" if has_counts else "share of the labels")

    return render(draw, size=(480, 310), font_size=11.5, prefix=prefix, description=description)


def _places(budgets: Sequence[Budget]) -> dict[Budget, float]:
    """Decades along the axis: log10 for counts, log10 shifted behind them for shares, then a gap and "all"."""
    gap = 0.35
    places: dict[Budget, float] = {}
    for budget in budgets:
        if budget is not None and not formats.is_share_budget(budget):
            places[budget] = math.log10(max(budget, 0.5))
    start = max(places.values(), default=None)
    shares = [budget for budget in budgets if budget is not None and formats.is_share_budget(budget)]
    for budget in shares:
        offset = 0.0 if start is None else start + gap - math.log10(shares[0])
        places[budget] = math.log10(budget) + offset
    if None in budgets:
        places[None] = max(places.values(), default=0.0) + gap
    return places


def _draw_series(axes: Axes, series: Series, places: dict[Budget, float]) -> None:
    colour = SERIES[series.style]
    budgets = sorted(series.by_budget, key=formats.budget_order)
    scores = [series.by_budget[budget] for budget in budgets]
    x = np.array([places[budget] for budget in budgets])
    value = 100 * np.array([score.value for score in scores])
    low = 100 * np.array([math.nan if score.low is None else score.low for score in scores])
    high = 100 * np.array([math.nan if score.high is None else score.high for score in scores])
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.vlines(x, low, high, color=colour, linewidth=1.4)
    axes.plot(x, value, color=colour, linestyle=_dashes(series.style))
    axes.plot(x, value, color=colour, linestyle="none", marker=MARKERS[series.style], markersize=5.5)


def curve_panel(curves: Sequence[Curve], *, prefix: str, description: str, unit: str) -> str:
    """SVG of up to `NUM_STYLES` curves over steps.

    Args:
        curves: Each in the style of its index.
        prefix: Put before the figure's ids.
        description: What the figure shows, in words.
        unit: "percent" for shares in [0, 1]; "from zero" to keep zero in sight; "plain".
    """
    assert unit in ("percent", "from zero", "plain"), f"unknown unit {unit!r}"
    factor = 100 if unit == "percent" else 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, curve in enumerate(curves[:NUM_STYLES]):
            steps, values = thinned(curve)
            marker = MARKERS[index] if len(steps) <= 12 else "none"
            axes.plot(
                steps,
                factor * values,
                color=SERIES[index],
                linestyle=_dashes(index),
                linewidth=1.6,
                marker=marker,
                markersize=4,
            )
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        sign = f"{formats.NBSP}%" if unit == "percent" else ""
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.number(value) + sign))
        if unit == "from zero":
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set_xlabel("step")

    return render(draw, size=(330, 200), font_size=11.5, prefix=prefix, description=description)


def thinned(curve: Curve, most: int = 300) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values, float64 [M], M <= most: means of neighbouring rows; the last row is always kept as it is."""
    steps = np.array([step for step, _ in curve], dtype=np.float64)
    values = np.array([value for _, value in curve], dtype=np.float64)
    if len(curve) <= most:
        return steps, values
    parts = np.array_split(np.arange(len(curve) - 1), most - 1)
    mean_steps = [float(steps[part].mean()) for part in parts]
    mean_values = [float(values[part].mean()) for part in parts]
    return np.array([*mean_steps, steps[-1]]), np.array([*mean_values, values[-1]])


def embedding_map(embedding: Embedding, *, prefix: str, description: str) -> str:
    """SVG of the two-dimensional map; points become pixels, class names stand at their class's median."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        size = float(np.clip(9000 / len(embedding.labels), 3, 22))
        unlabelled = embedding.xy[embedding.labels < 0]
        axes.scatter(
            unlabelled[:, 0], unlabelled[:, 1], s=size, color="#8a8f98", alpha=0.5, linewidths=0, rasterized=True
        )
        present = [int(label) for label in np.unique(embedding.labels) if label >= 0]
        for label in present:
            points = embedding.xy[embedding.labels == label]
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=size,
                color=CLASS_COLOURS[label % len(CLASS_COLOURS)],
                marker=_CLASS_MARKERS[label // len(CLASS_COLOURS) % len(_CLASS_MARKERS)],
                alpha=0.75,
                linewidths=0,
                rasterized=True,
            )
        for label in present if len(present) <= MAX_MAP_NAMES else ():
            x, y = np.median(embedding.xy[embedding.labels == label], axis=0)
            axes.text(float(x), float(y), class_name(embedding, label), ha="center", va="center", weight="bold")

    return render(draw, size=(480, 400), font_size=11.5, prefix=prefix, description=description)


def class_name(embedding: Embedding, label: int) -> str:
    """The class's name, safe for XML; its number where it has none."""
    names = embedding.class_names
    return formats.printable(names[label]) if 0 <= label < len(names) else str(label)


def confusion_heat_map(confusion: Confusion) -> bytes:
    """PNG, RGBA [C, C] enlarged without smoothing: opacity is the share of the true class's images."""
    from PIL import Image

    shares = row_shares(confusion)
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (0x2B, 0x7B, 0xBF)
    pixels[..., 3] = np.round(255 * np.sqrt(shares)).astype(np.uint8)  # root: rare confusions stay visible
    scale = max(1, 480 // len(shares))
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((scale * len(shares),) * 2, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()


def row_shares(confusion: Confusion) -> NDArray[np.float64]:
    """float64 [C, C]: each row divided by its sum; rows without images stay zero."""
    totals = confusion.matrix.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.zeros_like(confusion.matrix)
    np.divide(confusion.matrix, totals, out=shares, where=totals > 0)
    return shares


# Outlines of MARKERS around the origin, in legend pixels.
_MARKER_PATHS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3-3h6v6h-6z",
    "M0-4L4 3h-8z",
    "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "M0 4L4-3h-8z",
    "M-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "M-4-2.4L-2.4-4L0-1.6L2.4-4L4-2.4L1.6 0L4 2.4L2.4 4L0 1.6L-2.4 4L-4 2.4L-1.6 0z",
    "M0-4.5L1.2-1.4L4.4-1.4L1.9 .6L2.8 3.8L0 1.9L-2.8 3.8L-1.9 .6L-4.4-1.4L-1.2-1.4z",
)


def legend_mark(style: int) -> str:
    """Small SVG of a style's line and marker, to stand before its name."""
    dashes = " ".join(f"{length * 1.8:g}" for length in DASHES[style])
    colour = f"var(--series-{style})"
    return (
        f'<svg class="mark" viewBox="-15 -6 30 12" width="30" height="12" aria-hidden="true">'
        f'<path d="M-14 0H14" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        f'<path d="{_MARKER_PATHS[style]}" fill="{colour}"/></svg>'
    )
