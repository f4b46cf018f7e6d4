"""What is tried for each strategy before it is trained for good: a few candidates, in plain sight, as many for each.

Every candidate is trained on a part of the budget and judged on the rest by its log-loss (`build/cells.py`), so more
candidates cost time but no test label. A strategy with a solver of its own chooses inside the solver.
"""

from collections.abc import Sequence
from typing import Any

from ssl_ft.config import FinetuneSettings
from ssl_ft.errors import UserError

Candidate = dict[str, Any]

# Setting of finetune -> value; of optim.rate the share of the one given. The first candidate is taken where a budget
# has no label to choose on.
GRIDS: dict[str, tuple[Candidate, ...]] = {
    "scratch": ({"optim.rate": 1.0}, {"optim.rate": 1 / 3}),
    "probe": ({},),
    "partial": ({"partial.layers": 1}, {"partial.layers": 2}),
    "layer_decay": ({"layer_decay.decay": 0.75}, {"layer_decay.decay": 0.5}),
    "gradual": ({"encoder_rate_share": 0.1}, {"encoder_rate_share": 1.0}),
    "probe_then_finetune": ({"encoder_rate_share": 0.1}, {"encoder_rate_share": 0.03}),
    "full": ({"encoder_rate_share": 0.1}, {"encoder_rate_share": 1.0}),
    "l2sp": ({"l2sp.weight": 10.0}, {"l2sp.weight": 1.0}),
    "feature_distance": ({"distance.weight": 1.0}, {"distance.weight": 0.1}),
    "adapter": ({"adapter.rate_share": 1.0}, {"adapter.rate_share": 0.3}),
    "lora": ({"low_rank.rate_share": 1.0}, {"low_rank.rate_share": 0.3}),
    "dora": ({"low_rank.rate_share": 1.0}, {"low_rank.rate_share": 0.3}),
    "qlora": ({"low_rank.rate_share": 1.0}, {"low_rank.rate_share": 0.3}),
}


def candidates(settings: FinetuneSettings, strategy: str) -> list[FinetuneSettings]:
    """The settings to choose from for a strategy."""
    own = settings.model_copy(update={"strategy": strategy})
    return [with_values(own, _absolute(candidate, settings)) for candidate in GRIDS[strategy]]


def _absolute(candidate: Candidate, settings: FinetuneSettings) -> Candidate:
    if "optim.rate" not in candidate:
        return candidate
    return {**candidate, "optim.rate": float(f"{candidate['optim.rate'] * settings.optim.rate:.3g}")}


def refuse_settled(settings: FinetuneSettings, strategies: Sequence[str]) -> None:
    """Refuse settings that are chosen by the grid of a strategy that is compared, and were given all the same.

    Raises:
        UserError: as said.
    """
    for strategy in strategies:
        for name in {key for candidate in GRIDS.get(strategy, ()) for key in candidate} - {"optim.rate"}:
            section, _, last = name.rpartition(".")
            holder = getattr(settings, section) if section else settings
            if holder is not None and last in holder.model_fields_set:
                tried = " and ".join(f"{candidate[name]:g}" for candidate in GRIDS[strategy])
                raise UserError(
                    f"finetune.{name}: compare tries {tried} for strategy={strategy} and takes the better one, so that "
                    "all strategies are chosen alike; leave it out"
                )


def with_values(settings: FinetuneSettings, values: Candidate) -> FinetuneSettings:
    """The settings with some values replaced, by dotted name, and checked anew."""
    tree = settings.model_dump(exclude_unset=True)
    for name, value in values.items():
        *sections, last = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    return FinetuneSettings.model_validate(tree)


def words(candidate: Candidate, settings: FinetuneSettings) -> tuple[str, ...]:
    """What a candidate sets, as `key=value` words, from the settings that `candidates` made of it."""

    def value(name: str) -> Any:
        found: Any = settings
        for part in name.split("."):
            found = getattr(found, part)
        return found

    return tuple(f"{name}={value(name)}" for name in candidate)
