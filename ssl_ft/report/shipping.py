"""The section of the page about audits: one table and one Pareto picture for each first model.

A picture shows what was lost against the first model of a chain over what a file costs to run and to keep. Numbers are
the audits'; nothing is computed anew but ratios and axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ssl_ft.report import formats
from ssl_ft.report.audit_file import AuditFile, CostRow, Measured, SpeedRow, bounds, rounded
from ssl_ft.report.budgets import NUM_STYLES
from ssl_ft.report.figures import MARKERS, legend_mark
from ssl_ft.report.sections import LegendEntry
from ssl_ft.report.svg import INK, SERIES, render

_PARENT_TORCH, _PARENT_ONNX, _CHILD = "parent, PyTorch", "parent, ONNX", "exported"


@dataclass(frozen=True)
class ShippingView:
    """What the template prints about the models made from one first model; rows are cells of text."""

    heading: str
    svg: Markup | None
    legend: tuple[LegendEntry, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Point:
    """One model in the picture; `lost` against the first one, None for a drop that is 0 by definition."""

    name: str
    lost: Measured | None
    latency: SpeedRow
    size_mb: float


def shipping_views(audits: Mapping[str, AuditFile]) -> tuple[ShippingView, ...]:
    """A view for each first model, of all runs (by name) that come from it, in the order given."""
    groups: dict[str, dict[str, AuditFile]] = {}
    for run, found in audits.items():
        groups.setdefault(found.first, {})[run] = found
    return tuple(
        _view(first, of_first, prefix=f"shipping-{index}") for index, (first, of_first) in enumerate(groups.items())
    )


def _view(first: str, audits: Mapping[str, AuditFile], *, prefix: str) -> ShippingView:
    some = next(iter(audits.values()))
    points = _points(audits)
    machines = dict.fromkeys(
        f"Measured on {each.machine}, with {formats.counted(each.threads, 'thread')} of every runtime, in turns."
        for each in audits.values()
        if each.models
    )
    refused = tuple(f"{run} was not handed over." for run, each in audits.items() if not each.is_shipped)
    head = (
        "Model", f"Lost against its parent (95{formats.NBSP}% interval)", "Lost against the first", "Agreement",
        "Calibration error", "Size", "1 image, ms", "32 images, per second", "Memory",
    )  # fmt: skip
    rows = [_row(run, each) for run, each in audits.items()]
    return ShippingView(
        f"From {_short(first)}: {some.score.replace('_', ' ')} on {formats.counted(some.num_images, 'test image')}",
        Markup(_figure(points, some.score, prefix=prefix)) if points else None,
        tuple(LegendEntry(Markup(legend_mark(index % NUM_STYLES)), each.name) for index, each in enumerate(points)),
        head,
        tuple(rows),
        (*machines, *refused),
    )


def _row(run: str, found: AuditFile) -> tuple[str, ...]:
    costs = {each.name: each for each in found.models}
    child, parent, plain = (costs.get(name) for name in (_CHILD, _PARENT_TORCH, _PARENT_ONNX))
    before, after = found.scores.get("parent"), found.scores.get(_CHILD)
    calibration = "" if before is None or before.calibration is None else formats.percent(before.calibration)
    if calibration and after is not None and after.calibration is not None:
        calibration += f" → {formats.percent(after.calibration)}"
    size = latency = rate = memory = ""
    if child is not None and parent is not None and plain is not None:
        size = f"{_megabytes(child)} ({formats.percent(child.size_bytes / parent.size_bytes)} of the parent's)"
        times = [_speed(each, 1) for each in (parent, plain, child)]
        latency = f"{formats.number(times[2].median_ms)} ({_times(times[0], times[2])} PyTorch, " + (
            f"{_times(times[1], times[2])} ONNX)"
        )
        rate = formats.number(round(1000 * 32 / _speed(child, 32).median_ms))
        memory = "" if child.memory is None else formats.memory(child.memory.total_mb)
    return (
        run,
        _lost(found.score, found.drop),
        _lost(found.score, found.drop_from_first),
        formats.percent(found.agreement.value),
        calibration,
        size,
        latency,
        rate,
        memory,
    )


def _points(audits: Mapping[str, AuditFile]) -> list[_Point]:
    """The first model twice, in PyTorch and in ONNX, by the audit of a run made from it; then every run's file."""
    points: list[_Point] = []
    for run, found in audits.items():
        costs = {each.name: each for each in found.models}
        if _CHILD not in costs:
            continue
        if not points and found.drop == found.drop_from_first:
            points += [
                _Point(f"{_short(found.first)}, {how}", None, _speed(costs[name], 1), costs[name].size_bytes / 1e6)
                for name, how in ((_PARENT_TORCH, "PyTorch"), (_PARENT_ONNX, "ONNX"))
                if name in costs
            ]
        child = costs[_CHILD]
        points.append(_Point(run, found.drop_from_first, _speed(child, 1), child.size_bytes / 1e6))
    return points


def _figure(points: Sequence[_Point], score: str, *, prefix: str) -> str:
    """Loss over latency and over size, a point a model, with the interval of the loss and the spread of the calls."""
    scale = 100 if formats.is_share(score) else 1

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for index, point in enumerate(points):
            _draw(left, point, (point.latency.median_ms, point.latency), index, scale=scale)
            _draw(right, point, (point.size_mb, None), index, scale=scale)
        left.set_ylabel("points lost" if scale == 100 else f"{score.replace('_', ' ')} lost")
        left.set_xlabel("ms an image, one at a time")
        right.set_xlabel("size on disk, MB")
        for axes in (left, right):
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.set_xlim(left=0)
            axes.grid(visible=True, axis="x")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))

    spoken = "; ".join(
        f"{point.name}: lost {formats.number(0 if point.lost is None else scale * point.lost.value)}, "
        f"{formats.number(point.latency.median_ms)} ms, {formats.number(point.size_mb)} MB"
        for point in points
    )
    description = formats.printable(f"What models lost over latency and size. {spoken}.")
    return render(draw, size=(640, 300), font_size=11.5, prefix=prefix, description=description)


def _draw(axes: Axes, point: _Point, place: tuple[float, SpeedRow | None], index: int, *, scale: int) -> None:
    x, speed = place
    colour = SERIES[index % len(SERIES)]
    value = 0.0 if point.lost is None else scale * point.lost.value
    if point.lost is not None:
        axes.vlines(x, scale * point.lost.low, scale * point.lost.high, color=colour, linewidth=2)
    if speed is not None:
        axes.hlines(value, speed.low_ms, speed.high_ms, color=colour, linewidth=1)
    axes.plot(x, value, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=7, linestyle="none")


def _speed(costs: CostRow, batch: int) -> SpeedRow:
    return next(each for each in costs.speeds if each.batch == batch)


def _times(slower: SpeedRow, faster: SpeedRow) -> str:
    return f"{slower.median_ms / faster.median_ms:.1f} ×"


def _megabytes(costs: CostRow) -> str:
    return f"{formats.number(costs.size_bytes / 1e6)}{formats.NBSP}MB"


def _lost(score: str, lost: Measured) -> str:
    scale = 100 if formats.is_share(score) else 1
    return f"{rounded(scale * lost.value)} ({bounds(score, lost)})"


def _short(location: str) -> str:
    """Of a folder `classifier` the run's name, which says more."""
    path = PurePath(location)
    return path.parent.name if path.name == "classifier" and path.parent.name else path.name
