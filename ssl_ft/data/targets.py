"""Targets other than one class an image: yes or no for each of several labels, and numbers, from columns of a table.

Columns in, float32 [N, K] out, NaN where a value is missing. Which file holds the columns is a matter of `manifests`,
`tables` and `arrays`; roles and budgets are given out in `target_splits`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ssl_ft.data.listing import Source, sort_classes
from ssl_ft.errors import UserError

Task = Literal["classes", "multi_label", "regression"]
TASKS: tuple[str, ...] = get_args(Task)
Floats = NDArray[np.float32]

# Columns that say which image a row is, and in which split: never something to predict.
_TAKEN = ("path", "image", "images", "split")
_YES_NO = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TargetColumns:
    """Which columns hold the targets, and how to read them.

    Attributes:
        task: "multi_label" or "regression".
        names: the columns.
        separator: multi-label: between the names in a single column of names; None where each label has a column of
            0 and 1.
    """

    task: str
    names: tuple[str, ...]
    separator: str | None = None

    def __post_init__(self) -> None:
        """Refuse columns that cannot be targets.

        Raises:
            UserError: none, one named twice, the column of paths or splits, or several columns of names.
        """
        assert self.task in TASKS[1:], f"{self.task} has no target columns"
        if not self.names:
            raise UserError(f"data.task={self.task} needs the columns to learn: name them, as in data.targets='[a, b]'")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise UserError(f"data.targets names the column {twice[0]!r} twice; name each column once")
        taken = [name for name in self.names if name in _TAKEN]
        if taken:
            raise UserError(
                f"data.targets names {taken[0]!r}, which says which image a row is and not what is in it; name columns "
                "of targets"
            )
        if self.separator is not None and len(self.names) > 1:
            raise UserError(
                f"data.separator={self.separator!r} goes with a single column of names, and data.targets has "
                f"{len(self.names)}; name that column alone, or leave the separator out for columns of 0 and 1"
            )


@dataclass(frozen=True, eq=False)
class Targets:
    """What the columns hold.

    Attributes:
        values: float32 [N, K], NaN = missing.
        names: of the K targets.
        task: "multi_label" or "regression".
        notes: sentences worth showing to the user.
    """

    values: Floats
    names: tuple[str, ...]
    task: str
    notes: tuple[str, ...]


def encode_targets(
    columns: Sequence[Sequence[object]], wanted: TargetColumns, *, where: str, rows: Sequence[int] | None = None
) -> Targets:
    """The targets in columns of a table.

    Blank, None and NaN mean missing. In a column of names, separated or as lists, a blank row is unlabelled, while the
    separator alone (or an empty list) says that the image has none of the labels.

    Args:
        columns: values of each of `wanted.names`, N each.
        wanted: how to read them.
        where: the file, for messages.
        rows: number of each row as a person counts them, N; None counts from 1.

    Raises:
        UserError: a value that is none of those allowed, or a column without any.
    """
    numbers = range(1, 1 + len(columns[0])) if rows is None else rows
    if wanted.separator is not None:
        values, names = _from_names(columns[0], wanted.names[0], wanted.separator, where=where, rows=numbers)
    else:
        read = _yes_or_no if wanted.task == "multi_label" else _number
        names = wanted.names
        values = np.empty((len(columns[0]), len(names)), np.float32)
        for place, (name, column) in enumerate(zip(names, columns, strict=True)):
            for row, value in enumerate(column):
                found = read(value)
                if isinstance(found, str):
                    raise UserError(
                        f"{where}, row {numbers[row]}, column {name!r}: {_shown(value)} is {found}. Correct it, or "
                        "leave it blank where it is not known"
                    )
                values[row, place] = found
    empty = [name for place, name in enumerate(names) if np.isnan(values[:, place]).all()]
    if empty:
        raise UserError(f"{where}: the column {empty[0]!r} is blank in every row; leave it out of data.targets")
    return Targets(values, names, wanted.task, tuple(_missing_notes(values, names, where=where)))


def with_targets(source: Source, targets: Targets) -> Source:
    """The source with these targets, and no class labels."""
    return replace(
        source,
        labels=None,
        class_names=(),
        targets=targets.values,
        target_names=targets.names,
        task=targets.task,
        notes=(*source.notes, *targets.notes),
    )


def is_labelled(targets: Floats) -> NDArray[np.bool_]:
    """Bool [N]: images with at least one value."""
    return np.asarray(~np.isnan(targets).all(axis=1))


def missing_columns(wanted: TargetColumns, found: Iterable[str], *, where: str) -> str:
    """The sentence about columns that are not there or there twice; empty where each is there once."""
    columns = list(found)
    for name in wanted.names:
        if name not in columns:
            return (
                f"{where} has no column {name!r}, which data.targets names; its columns are "
                f"{', '.join(columns) or 'none'}"
            )
        if columns.count(name) > 1:
            return f"{where} has {columns.count(name)} columns called {name!r}; give each column its own name"
    return ""


def _from_names(
    column: Sequence[object], name: str, separator: str, *, where: str, rows: Sequence[int]
) -> tuple[Floats, tuple[str, ...]]:
    """A column such as `cat;dog` as yes or no for every name that occurs in it."""
    found: list[list[str] | None] = []
    for row, value in zip(rows, column, strict=True):
        words = _words(value, separator)
        if words is not None:
            twice = [word for word, count in Counter(words).items() if count > 1]
            if twice:
                raise UserError(f"{where}, row {row}, column {name!r}: {twice[0]!r} is named twice; name it once")
        found.append(words)
    names = sort_classes({word for words in found if words for word in words})
    if not names:
        raise UserError(f"{where}: the column {name!r} names no label in any row; name another column in data.targets")
    place = {word: number for number, word in enumerate(names)}
    values = np.zeros((len(column), len(names)), np.float32)
    for row_number, words in enumerate(found):
        if words is None:
            values[row_number] = np.nan
        else:
            values[row_number, [place[word] for word in words]] = 1.0
    return values, names


def _words(value: Any, separator: str) -> list[str] | None:
    """Names in a cell; None where it is blank."""
    if isinstance(value, (list, tuple)):
        return [str(word).strip() for word in value]
    if _is_blank(value):
        return None
    return [word for word in (part.strip() for part in str(value).split(separator)) if word]


def _is_blank(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def _yes_or_no(value: Any) -> float | str:
    """0, 1 or NaN; what is wrong, in words, where it is none of them."""
    if _is_blank(value):
        return math.nan
    text = str(value).strip().lower()
    if text in _YES_NO:
        return _YES_NO[text]
    try:
        number = float(text)
    except ValueError:
        return (
            "neither 0 nor 1 (true and false will do), which a column of data.task=multi_label holds; for a column of "
            "names give data.separator=, such as data.separator=';'"
        )
    return number if number in (0.0, 1.0) else "neither 0 nor 1, which a column of data.task=multi_label holds"


def _number(value: Any) -> float | str:
    if _is_blank(value):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "no number, which a column of data.task=regression holds (with a decimal point)"
    return number if abs(number) <= _LARGEST else "not a finite number of float32 (up to 3.4e38)"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _missing_notes(values: Floats, names: Sequence[str], *, where: str) -> list[str]:
    """How many values are missing of which target: they take no part in loss and scores."""
    is_missing = np.isnan(values)
    unlabelled = int(is_missing.all(axis=1).sum())
    notes = [f"{where}: {unlabelled} of {len(values)} images have no target at all."] if unlabelled else []
    counts = [(name, int(count) - unlabelled) for name, count in zip(names, is_missing.sum(axis=0), strict=True)]
    some = [f"{name} {count}" for name, count in counts if count]
    if some:
        more = f" and {len(some) - 10} more targets" if len(some) > 10 else ""
        notes.append(
            f"{where}: values missing among the others, left out of loss and scores: {', '.join(some[:10])}{more}."
        )
    return notes


def join_targets(first: Source, second: Source) -> tuple[Floats | None, tuple[str, ...]]:
    """Targets of two sources one after the other, matched by name.

    A label that only one of them knows is absent (0) from the labelled images of the other: names in a column are all
    the labels an image has. Columns are named alike in both, so this concerns columns of names alone.

    Raises:
        UserError: only one of them has targets.
    """
    if first.targets is None and second.targets is None:
        return None, ()
    if first.targets is None or second.targets is None:
        full, bare = (second, first) if first.targets is None else (first, second)
        raise UserError(f"{full.location} has targets and {bare.location} has none, so the two cannot be matched.")
    names = first.target_names + tuple(name for name in second.target_names if name not in first.target_names)
    parts = []
    for source, targets in ((first, first.targets), (second, second.targets)):
        part = np.where(is_labelled(targets)[:, None], np.float32(0), np.float32(np.nan))
        part = np.repeat(part, len(names), axis=1)
        part[:, [names.index(name) for name in source.target_names]] = targets
        parts.append(part)
    return np.concatenate(parts), names
