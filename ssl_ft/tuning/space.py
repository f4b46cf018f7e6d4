"""What is searched: ranges of single settings, their values on a grid, and how a trial gets its own.

Which settings there are, and whether a range fits one, is not known here.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Dimension:
    """One setting and its range.

    Attributes:
        name: dotted name of the setting.
        kind: float, int or categorical.
        low: smallest value of numbers.
        high: largest value of numbers.
        step: distance of their values; None: any in between.
        is_log: whether their logarithm is searched.
        choices: plain values of categorical: None, texts, numbers, or lists and mappings of them.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    def ends(self) -> tuple[Any, ...]:
        """The smallest and the largest value, or all choices."""
        if self.kind == "categorical":
            return self.choices
        return (round(self.low), round(self.high)) if self.kind == "int" else (self.low, self.high)

    def count(self) -> int:
        """How many values there are, told without making them."""
        if self.kind == "categorical":
            return len(self.choices)
        step = 1.0 if self.kind == "int" and self.step is None else self.step
        assert step is not None, "a continuous range has no number of values"
        return round((self.high - self.low) / step) + 1

    def values(self) -> tuple[Any, ...]:
        """Every value, which numbers have where there is a step."""
        if self.kind == "categorical":
            return self.choices
        if self.kind == "int":
            return tuple(range(round(self.low), round(self.high) + 1, round(self.step or 1)))
        assert self.step is not None, "a continuous range has no list of values"
        # In decimals, so that 0.1 + 2 * 0.1 is 0.3.
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        return tuple(float(low + i * step) for i in range(round((self.high - self.low) / self.step) + 1))

    def words(self) -> str:
        """The range for a person to read."""
        if self.kind == "categorical":
            return ", ".join(map(plain_words, self.choices))
        low, high = (f"{value:g}" for value in (self.low, self.high))
        step = "" if self.step is None else f" in steps of {self.step:g}"
        return f"{low} to {high}{step}{', logarithmic' if self.is_log else ''}"


def plain_words(value: Any) -> str:
    """A plain value as one writes it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def num_points(space: Sequence[Dimension]) -> int:
    """Points of the grid."""
    return math.prod(each.count() for each in space)


def grid_values(space: Sequence[Dimension]) -> dict[str, list[Any]]:
    """The grid as optuna takes it: values of each setting, lists and mappings as text."""
    return {each.name: [_stored(value) for value in each.values()] for each in space}


def suggest(
    trial: Any, space: Sequence[Dimension], *, redraw: Callable[[str, Any], None] | None = None
) -> dict[str, Any]:
    """A trial's value of each setting, chosen by its sampler, or, where they were chosen before, those.

    Args:
        trial: optuna's trial.
        space: what is searched.
        redraw: called with name and distribution of what was chosen before, so that the sampler draws as often.
    """
    known, values = dict(trial.distributions), {}
    for each in space:
        if redraw is not None and each.name in known:
            redraw(each.name, known[each.name])
        values[each.name] = _suggest(trial, each)
    return values


def _suggest(trial: Any, own: Dimension) -> Any:
    if own.kind == "categorical":
        stored = [_stored(choice) for choice in own.choices]
        return own.choices[stored.index(trial.suggest_categorical(own.name, stored))]
    if own.kind == "int":
        low, high = own.ends()
        return int(trial.suggest_int(own.name, low, high, step=round(own.step or 1), log=own.is_log))
    return float(trial.suggest_float(own.name, own.low, own.high, step=own.step, log=own.is_log))


def _stored(value: Any) -> Any:
    # A journal keeps plain values alone as choices.
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, sort_keys=True)


def restored(stored: dict[str, Any], space: Sequence[Dimension]) -> dict[str, Any]:
    """The settings of a trial from what its journal keeps, those that were chosen."""
    values = {}
    for each in space:
        if each.name not in stored:
            continue
        kept = stored[each.name]
        if each.kind == "categorical":
            values[each.name] = next(choice for choice in each.choices if _stored(choice) == kept)
        else:
            values[each.name] = int(kept) if each.kind == "int" else float(kept)
    return values
