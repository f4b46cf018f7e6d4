"""`write_report`: run folders in, one offline HTML page out, byte for byte the same for the same folders.

Reads run folders only; never a model, settings or data. Sentences, figures and tables have their own files.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ssl_ft.errors import UserError
from ssl_ft.report import sections, words
from ssl_ft.report.budgets import MODEL_LABELS, compare_runs
from ssl_ft.report.comparison import comparison_legend, comparison_view
from ssl_ft.report.comparison_words import finding
from ssl_ft.report.extras import Confusion
from ssl_ft.report.formats import budget_words
from ssl_ft.report.lineage import lineage_columns
from ssl_ft.report.runs import Gathered, Run, gather_runs
from ssl_ft.report.shift_section import ShiftView, shift_view
from ssl_ft.report.shipping import shipping_views
from ssl_ft.report.target_views import TargetView, target_finding, target_view
from ssl_ft.report.tuning_section import TuningView, tuning_view


@dataclass(frozen=True)
class RunView:
    """One run as the template prints it."""

    run: Run
    stage: str
    account: str
    command: str
    panels: tuple[sections.PanelView, ...]
    pictures: tuple[sections.PictureView, ...]
    neighbours: tuple[sections.PictureView, ...]
    map: Markup | None
    confusion: sections.ConfusionView | None
    per_class: tuple[tuple[str, str, tuple[tuple[str, float], ...]], ...]
    targets: TargetView | None
    damaged: sections.Table
    duplicates: sections.Table
    settings: sections.Table
    shift: ShiftView | None = None
    tuning: TuningView | None = None


def write_report(run_folders: Sequence[Path], output: Path, *, title: str) -> Path:
    """Writes one self-contained HTML page about the runs; returns `output`.

    Args:
        run_folders: Run folders, or folders that directly contain run folders.
        output: Path of the page; its folder is made where absent, an existing page is replaced at once.
        title: The page's heading.

    Raises:
        UserError: No run is found, a `result.json` is unreadable or of a newer schema, or `output` cannot
            be written.
    """
    page = _render(gather_runs(run_folders), title)
    # Names of files need not be valid text: what UTF-8 cannot hold is shown as an escape.
    content = page.encode("utf-8", errors="backslashreplace")
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, output)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(
            f"The report cannot be written to {output}: {error.strerror}. Give a path in a folder that can be written."
        ) from error
    return output


def _render(gathered: Gathered, title: str) -> str:
    runs = gathered.runs
    summaries = {run.name: summary for run in runs if (summary := run.extras.comparison) is not None}
    found = [
        (run, finding(summaries[run.name]) if run.name in summaries else words.finding(run) or target_finding(run))
        for run in runs
    ]
    findings = [(run, sentence) for run, sentence in found if sentence]
    # One run a stage reads as one story; several (two encoders, two data sets) need their names.
    is_one_story = len({run.stage for run, _ in findings}) == len(findings)
    sentences = [sentence for _, sentence in findings] or [words.pretrained_only(runs)]
    package = files("ssl_ft.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(package.joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        title=title,
        style=Markup(package.joinpath("page.css").read_text("utf-8")),
        lead=sentences[0] if is_one_story else "",
        further=sentences[1:],
        findings=[(run.name, sentence) for run, sentence in findings],
        columns=lineage_columns(runs),
        strategies=[
            comparison_view(summary, name=name, prefix=f"strategies-{index}")
            for index, (name, summary) in enumerate(summaries.items())
        ],
        strategy_legend=comparison_legend(),
        shipping=shipping_views({run.name: run.extras.audit for run in runs if run.extras.audit is not None}),
        comparisons=[
            sections.accuracy_view(comparison, prefix=f"accuracy-{index}")
            for index, comparison in enumerate(
                compare_runs([run for run in runs if run.name not in summaries and run.extras.audit is None])
            )
        ],
        views=[_view(run, f"run-{index}") for index, run in enumerate(runs)],
        costs=sections.costs_table(runs),
        metrics=sections.metrics_table(runs),
        data=sections.data_table(runs),
        versions=sections.versions_table(runs),
        unfinished=gathered.unfinished,
    )


def _view(run: Run, prefix: str) -> RunView:
    pictures = [(picture.name, sections.picture_view(picture)) for picture in run.extras.pictures]
    confusion = run.extras.confusion
    command = run.manifest.command
    return RunView(
        run=run,
        stage=words.stage_title(run.stage),
        account=words.account(run),
        command=command if isinstance(command, str) else " ".join(command),
        panels=sections.panel_views(run, prefix=f"{prefix}-curve"),
        pictures=tuple(view for name, view in pictures if not name.startswith("neighbours")),
        neighbours=tuple(view for name, view in pictures if name.startswith("neighbours")),
        map=sections.map_view(run, prefix=f"{prefix}-map"),
        confusion=None if confusion is None else sections.confusion_view(confusion, about=_about(confusion)),
        per_class=sections.per_class_table(run),
        targets=target_view(run, prefix=f"{prefix}-target"),
        damaged=sections.damaged_table(run),
        duplicates=sections.duplicates_table(run),
        settings=sections.settings_table(run),
        shift=None if run.extras.shift is None else shift_view(run.extras.shift, prefix=f"{prefix}-shift"),
        tuning=None if run.extras.tuning is None else tuning_view(run.extras.tuning, prefix=f"{prefix}-tuning"),
    )


def _about(confusion: Confusion) -> str:
    model = MODEL_LABELS.get(confusion.model, confusion.model) if confusion.model else "Model"
    return f"{model}, {budget_words(confusion.labels_per_class)}"
