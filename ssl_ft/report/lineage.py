"""The way from data to judged models as columns of cards: data, models from outside the report, then runs by their
distance from them.

Layout and arrows are the template's; this says which card stands in which column and what it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ssl_ft.report import formats
from ssl_ft.report.runs import DataUse, Parent, Run, holders, levels
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
    columns = [tuple(_data_cards(runs)), tuple(_earlier_cards(runs))]
    for depth in sorted(set(level.values())):
        columns.append(tuple(_run_card(run, runs) for run in runs if level[run.name] == depth))
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


def _earlier_cards(runs: Sequence[Run]) -> list[Card]:
    """Models that a shown run was made from, at whatever distance, and whose own run is not shown; the oldest first."""
    cards: dict[str, Card] = {}
    for run in runs:
        for parent in run.parents:
            chain = [parent, *parent.ancestors]
            for model, older in reversed([*zip(chain, [*chain[1:], None], strict=True)]):
                if not holders(model, runs):
                    name = _model_name(model)
                    digest = f"SHA-256 {model.sha256[:12]}" if model.sha256 else ""
                    facts = tuple(fact for fact in (_KINDS.get(model.kind or "", model.kind or ""), digest) if fact)
                    cards.setdefault(model.path, Card("Earlier model", name, facts, _from(older, runs)))
    return list(cards.values())


_KINDS = {"timm": "weights of timm's hub", "weights": "a file of weights"}


def _model_name(model: Parent) -> str:
    """Of a folder `encoder` or `classifier` the run's name, which says more."""
    path = PurePath(model.path)
    return path.parent.name if path.name in ("encoder", "classifier") and path.parent.name else path.name


def _from(model: Parent | None, runs: Sequence[Run]) -> tuple[str, ...]:
    if model is None:
        return ()
    return tuple(run.name for run in holders(model, runs)) or (_model_name(model),)


def _run_card(run: Run, runs: Sequence[Run]) -> Card:
    facts = [setting_name(run.settings, "objective"), run.extras.architecture]
    if run.result.seconds is not None:
        facts.append(formats.duration(run.result.seconds))
    shown = tuple(fact for fact in facts if fact)
    unseen = [name for parent in run.parents if not holders(parent, runs) for name in _from(parent, runs)]
    return Card(stage_title(run.stage), run.name, shown, (*run.parent_names, *unseen))
