"""What is tried for each strategy before it is trained for good: a few candidates, in plain sight, as many for each.

Every candidate is trained on a part of the budget and judged on the rest by its log-loss (`build/cells.py`), so more
candidates cost time but no test label. A strategy with a solver of its own chooses inside the solver.
"""

from typing import Any

from ssl_ft.config import FinetuneSettings

Candidate = dict[str, Any]

# Setting of finetune -> value. The first candidate is taken where a budget has no label to choose on.
GRIDS: dict[str, tuple[Candidate, ...]] = {
    "scratch": ({"optim.rate": 3e-3}, {"optim.rate": 1e-3}),
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
    return [with_values(own, candidate) for candidate in GRIDS[strategy]]


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


def words(candidate: Candidate) -> tuple[str, ...]:
    """The candidate as `key=value` words."""
    return tuple(f"{key}={value}" for key, value in candidate.items())
