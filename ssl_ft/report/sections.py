"""What each section of the page shows, as frozen records the template can print without deciding anything.

SVG and data addresses are `Markup`; all other text is plain and escaped by the template.
"""

import base64
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ssl_ft.report import figures, formats
from ssl_ft.report.budgets import Comparison, Series
from ssl_ft.report.extras import Confusion, Curve, Picture
from ssl_ft.report.runs import Run

_MAX_TABLE_CLASSES = 20
_MAX_LISTED = 20
_PATCH_WARNING = (
    "Read with care: the predicted patches are shown with the mean and spread of the true patches, which the "
    "model never saw. Brightness and contrast therefore look better than the model alone would make them."
)


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LegendEntry:
    mark: Markup
    label: str


@dataclass(frozen=True)
class AccuracyView:
    heading: str
    svg: Markup
    legend: tuple[LegendEntry, ...]
    table: Table


@dataclass(frozen=True)
class PanelView:
    title: str
    note: str
    svg: Markup
    legend: tuple[LegendEntry, ...]


@dataclass(frozen=True)
class PictureView:
    source: Markup
    width: int
    height: int
    title: str
    caption: str
    rows: tuple[str, ...]
    warning: str


@dataclass(frozen=True)
class ConfusionView:
    """Either `cells` (small) or `heat_map` (many classes) is filled; cells hold (count, shade in [0, 1])."""

    about: str
    class_names: tuple[str, ...]
    cells: tuple[tuple[tuple[str, float], ...], ...]
    heat_map: Markup | None
    mistakes: tuple[str, ...]


def accuracy_view(comparison: Comparison, *, prefix: str) -> AccuracyView:
    """Figure, legend and table of one comparison."""
    description = f"Accuracy over labels per class on {comparison.name}. " + " ".join(
        f"{series.label}: {_spoken(series, comparison)}." for series in comparison.series
    )
    svg = figures.accuracy_over_labels(comparison, prefix=prefix, description=formats.printable(description))
    rows = tuple(
        (formats.budget_mark(budget), *(_cell(series, budget) for series in comparison.series))
        for budget in comparison.budgets
    )
    where = "test images" if comparison.split == "test" else "validation images, for want of test images"
    return AccuracyView(
        f"{comparison.name}, judged on {where}",
        Markup(svg),
        _legend([(series.style, series.label) for series in comparison.series]),
        Table(("Labels per class", *(series.label for series in comparison.series)), rows),
    )


def _spoken(series: Series, comparison: Comparison) -> str:
    return ", ".join(
        f"{formats.percent(series.by_budget[budget].value)} with {formats.budget_words(budget)}"
        for budget in comparison.budgets
        if budget in series.by_budget
    )


def _cell(series: Series, budget: formats.Budget) -> str:
    metric = series.by_budget.get(budget)
    if metric is None:
        return ""
    bounds = formats.interval(metric.name, metric.low, metric.high)
    return formats.percent(metric.value) + (f"{formats.NBSP}({bounds})" if bounds else "")


def _legend(entries: Sequence[tuple[int, str]]) -> tuple[LegendEntry, ...]:
    return tuple(LegendEntry(Markup(figures.legend_mark(style)), label) for style, label in entries)


_PANEL_WORDS = {
    "loss": ("Loss", "On training batches. Losses of different objectives cannot be compared."),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "gradient_cosine": ("Gradient cosine", "Between the parts of the loss; below zero they pull against each other."),
    "embedding_std": ("Spread of embeddings", "A fall to zero means that the encoder collapsed."),
    "rank_me": ("Effective rank", "Dimensions in use (RankMe); a fall to 1 means that the encoder collapsed."),
}
_FROM_ZERO = {"embedding_std", "rank_me", "lr", "grad_norm"}
# Facts about the machine, not about learning: the median rate stands among the costs.
_NO_PANEL = {"images_per_second", "stall_share", "seconds", "epoch"}


def panel_views(run: Run, *, prefix: str) -> tuple[PanelView, ...]:
    """Learning curves of one run: scores watched on the way first in one panel, then a panel a key."""
    train, evals = run.extras.train_curves, run.extras.eval_curves
    groups: list[tuple[str, str, dict[str, Curve]]] = []
    for key in sorted(train, key=lambda key: key != "loss"):
        # A loss of one part is that part: once is enough.
        if key not in _NO_PANEL and not (key != "loss" and train[key] == train.get("loss")):
            groups.append((*_PANEL_WORDS.get(key, (_title(key), "")), {key: train[key]}))
    scores = {key: curve for key, curve in evals.items() if formats.is_share(key)}
    if scores:
        title = _title(next(iter(scores))) if len(scores) == 1 else "Scores during training"
        groups.insert(1 if "loss" in train else 0, (title, "Watched while training; not the final judgement.", scores))
    for key in evals:
        if key not in scores and key not in _NO_PANEL:
            groups.append((*_PANEL_WORDS.get(key, (_title(key), "")), {key: evals[key]}))
    return tuple(
        _panel(title, note, curves, prefix=f"{prefix}-{index}") for index, (title, note, curves) in enumerate(groups)
    )


def _panel(title: str, note: str, curves: Mapping[str, Curve], *, prefix: str) -> PanelView:
    keys = list(curves)
    unit = "percent" if formats.is_share(keys[0]) else "from zero" if keys[0] in _FROM_ZERO else "plain"
    ends = [f"{_title(key)}: {formats.measured(key, curves[key][-1][1])}" for key in keys]
    description = f"{title} over steps; at step {curves[keys[0]][-1][0]:,} {', '.join(ends)}."
    svg = figures.curve_panel(
        list(curves.values()), prefix=prefix, description=formats.printable(description), unit=unit
    )
    last = formats.measured(keys[0], curves[keys[0]][-1][1])
    # Where a schedule ends says nothing; where a score ends does.
    heading = title if len(keys) > 1 or keys[0] == "lr" else f"{title}: {last} at the end"
    return PanelView(heading, note, Markup(svg), _legend(list(enumerate(map(_title, keys)))) if len(keys) > 1 else ())


def _title(key: str) -> str:
    words = key.replace("_", " ").replace("knn", "kNN")
    return words[:1].upper() + words[1:] if not words.startswith("kNN") else words


def picture_view(picture: Picture) -> PictureView:
    """A contact sheet ready to print; warns where the caption says that true patch statistics were used."""
    warning = _PATCH_WARNING if "patch statistics" in picture.caption.lower() else ""
    title = _title(picture.name)
    return PictureView(
        _address(picture.png), picture.width, picture.height, title, picture.caption, picture.rows, warning
    )


def map_view(run: Run, *, prefix: str) -> Markup | None:
    """The embedding map's SVG; None where the run has none."""
    embedding = run.extras.embedding
    if embedding is None:
        return None
    present = sorted({int(label) for label in embedding.labels if label >= 0})
    names = ", ".join(figures.class_name(embedding, label) for label in present[: figures.MAX_MAP_NAMES])
    description = f"Map of {formats.counted(len(embedding.labels), 'embedding')}, coloured by class: {names}."
    return Markup(figures.embedding_map(embedding, prefix=prefix, description=description))


def confusion_view(confusion: Confusion, *, about: str) -> ConfusionView:
    """Cells for up to 20 classes, a heat map beyond, and the commonest mistakes in words."""
    shares = figures.row_shares(confusion)
    is_small = len(confusion.class_names) <= _MAX_TABLE_CLASSES
    # The root of the share of its row, so that rare mistakes stay visible.
    cells = tuple(
        tuple((f"{count:,.0f}", round(float(share) ** 0.5, 3)) for count, share in zip(*rows, strict=True))
        for rows in zip(confusion.matrix, shares, strict=True)
    )
    heat_map = None if is_small else _address(figures.confusion_heat_map(confusion))
    return ConfusionView(
        about, confusion.class_names, cells if is_small else (), heat_map, _mistakes(confusion, 3 if is_small else 10)
    )


def _mistakes(confusion: Confusion, most: int) -> tuple[str, ...]:
    shares = figures.row_shares(confusion)
    names = confusion.class_names
    pairs = [(float(shares[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    worst = sorted((pair for pair in pairs if pair[0] > 0), key=lambda pair: (-pair[0], pair[1:]))[:most]
    return tuple(f"{names[i]} taken for {names[j]} ({formats.percent(share)})" for share, i, j in worst)


def _address(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode("ascii"))


def costs_table(runs: Sequence[Run]) -> Table:
    """Time, memory and speed of each run."""
    rows = []
    for run in runs:
        rates = [rate for _, rate in run.extras.train_curves.get("images_per_second", ())]
        rows.append(
            (
                run.name,
                run.manifest.device or "",
                str(run.manifest.num_ranks or ""),
                "" if run.result.seconds is None else formats.duration(run.result.seconds),
                "" if run.result.peak_memory_mb is None else formats.memory(run.result.peak_memory_mb),
                f"{statistics.median(rates):,.0f}" if rates else "",
            )
        )
    return Table(("Run", "Device", "Processes", "Time", "Peak memory", "Images per second"), tuple(rows))


def metrics_table(runs: Sequence[Run]) -> Table:
    """Every measured value of every run. Budgets count labels per class, of other tasks than classes images in all."""
    kinds = {_counts_images(run) for run in runs if any(metric.labels_per_class for metric in run.result.metrics)}
    budgets = {frozenset([True]): "Labelled images", frozenset([True, False]): "Labels"}
    rows = tuple(
        (
            run.name,
            metric.name.replace("_", " ") + ("" if metric.target is None else f" of {metric.target}"),
            metric.model or "",
            _budget_cell(metric.labels_per_class, run, is_mixed=len(kinds) > 1),
            metric.split or "",
            formats.measured(metric.name, metric.value),
            formats.interval(metric.name, metric.low, metric.high),
            "" if metric.n is None else formats.count(metric.n),
        )
        for run in runs
        for metric in run.result.metrics
    )
    head = budgets.get(frozenset(kinds), "Labels per class")
    return Table(("Run", "Metric", "Model", head, "Split", "Value", "95 % interval", "n"), rows)


def _counts_images(run: Run) -> bool:
    data = run.settings.get("data")
    return isinstance(data, Mapping) and data.get("task", "classes") != "classes"


def _budget_cell(budget: formats.Budget, run: Run, *, is_mixed: bool) -> str:
    """A budget as its column wants it; with its unit where runs of both kinds share the column."""
    mark = formats.budget_mark(budget)
    if not is_mixed or budget is None or formats.is_share_budget(budget):
        return mark
    return f"{mark}{formats.NBSP}{'images' if _counts_images(run) else 'per class'}"


def data_table(runs: Sequence[Run]) -> Table:
    """Data sets by run and role, with the fingerprint of their contents."""
    rows = tuple(
        (
            run.name,
            use.role,
            use.location,
            use.kind or "",
            "" if use.num_images is None else formats.count(use.num_images),
            use.fingerprint or "",
        )
        for run in runs
        for use in run.data
    )
    return Table(("Run", "Role", "Location", "Kind", "Images", "Fingerprint"), rows)


def versions_table(runs: Sequence[Run]) -> Table:
    """Software versions, one column a run."""
    names = sorted({name for run in runs for name in run.manifest.versions})
    rows = tuple((name, *(str(run.manifest.versions.get(name, "")) for run in runs)) for name in names)
    return Table(("Software", *(run.name for run in runs)), rows)


def settings_table(run: Run) -> Table:
    """Settings under dotted names."""
    return Table(("Setting", "Value"), tuple(_flat(run.settings, "")))


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(str(item) for item in value))]
    return [(name, "" if value is None else str(value))]


def damaged_table(run: Run) -> Table:
    """The first damaged files; the template says how many there are in all."""
    return Table(("File", "What is wrong", "Used instead"), run.extras.damaged[:_MAX_LISTED])


def duplicates_table(run: Run) -> Table:
    """The first exact duplicates between the pretraining pool and the test images."""
    return Table(("In the pretraining pool", "Among the test images"), run.extras.duplicates[:_MAX_LISTED])


def per_class_table(run: Run) -> tuple[tuple[str, str, tuple[tuple[str, float], ...]], ...]:
    """(class, images, ((score, share for its bar), …)) with the class of lowest F1 first."""

    def order(index: int) -> tuple[float, int]:
        f1 = run.extras.per_class[index].f1
        return (f1 if f1 == f1 else -1.0, index)

    rows = []
    for index in sorted(range(len(run.extras.per_class)), key=order):
        score = run.extras.per_class[index]
        values = [
            (formats.percent(v), round(v, 3) if v == v else 0.0) for v in (score.precision, score.recall, score.f1)
        ]
        rows.append((score.name, formats.count(score.num_images), tuple(values)))
    return tuple(rows)
