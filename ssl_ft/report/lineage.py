"""The way from data to judged models as columns of cards: data, then runs by their distance from it.

Layout and arrows are the template's; this says which card stands in which column and what it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ssl_ft.report import formats
from ssl_ft.report.runs import DataUse, Run, levels
from ssl_ft.report.words import setting_name, stage_title


@dataclass(frozen=True)
class Card:
    """One thing in the lineage: what kind, its name, a few facts, and what it was made from."""

    kind: str
    name: str
    facts: tuple[str, ...]
    parents: tuple[str, ...]


def lineage_columns(runs: Sequence[Run]) -> tuple[tuple[Card, ...], ...]:
    """Cards by column, left to right; an arrow belongs between neighbouring columns."""
    level = levels(runs)
    columns = [tuple(_data_cards(runs))]
    for depth in sorted(set(level.values())):
        columns.append(tuple(_run_card(run) for run in runs if level[run.name] == depth))
    return tuple(column for column in columns if column)


def _data_cards(runs: Sequence[Run]) -> list[Card]:
    by_location: dict[str, dict[str, DataUse]] = {}
    for run in runs:
        for use in run.data:
            by_location.setdefault(use.location, {}).setdefault(use.role, use)
    return [
        Card("Data", PurePath(location).name or location or "data", tuple(_role(use) for use in uses.values()), ())
        for location, uses in by_location.items()
    ]


def _role(use: DataUse) -> str:
    return f"{use.role}: {formats.counted(use.num_images, 'image')}" if use.num_images is not None else use.role


def _run_card(run: Run) -> Card:
    facts = [setting_name(run.settings, "objective"), run.extras.architecture]
    if run.result.seconds is not None:
        facts.append(formats.duration(run.result.seconds))
    shown = tuple(fact for fact in facts if fact)
    return Card(stage_title(run.stage), run.name, shown, run.parent_names)
