"""Settings of tune: what is searched, over which ranges, how, and for how long.

Whether names and ends of ranges fit the tuned stage is checked in `build/tuning_space.py`, which knows its class.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ssl_ft.config.base import Count, Settings, Stage
from ssl_ft.config.pretrain import PretrainSettings
from ssl_ft.config.transfer import FinetuneSettings

# What tune sets itself, or what would only change how fast a trial is.
_OWN = {
    "finetune": ("seed", "device", "threads", "out"),
    "pretrain": ("seed", "device", "threads", "out", "devices", "slurm", "trackers"),
}
# What says how long the stage trains.
LENGTHS = {"finetune": ("epochs", "min_steps"), "pretrain": ("duration",)}
_ENTRY = {"type", "low", "high", "step", "log", "choices"}


class RangeSettings(Settings):
    type: Literal["float", "int", "categorical"] = Field(description="what its values are")
    low: float | None = Field(None, allow_inf_nan=False, description="smallest value, of float and int")
    high: float | None = Field(None, allow_inf_nan=False, description="largest value, itself included")
    step: float | None = Field(
        None, allow_inf_nan=False, description="distance of the values; none: any value in between, of int each"
    )
    log: bool = Field(False, description="search its logarithm, for what spans powers of ten")
    choices: tuple[Any, ...] | None = Field(None, description="the values, of categorical")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        problems = self._of_choices() if self.type == "categorical" else self._of_numbers()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _of_choices(self) -> list[str]:
        given = [name for name in ("low", "high", "step") if getattr(self, name) is not None] + ["log"] * self.log
        if given:
            return [f"{given[0]} concerns type=float and type=int; leave it out, or write another type"]
        if not self.choices:
            return ["type=categorical needs choices, such as choices: [a, b]"]
        if len({json.dumps(choice, sort_keys=True, default=str) for choice in self.choices}) < len(self.choices):
            return [f"choices={list(self.choices)} names a value twice"]
        return []

    def _of_numbers(self) -> list[str]:
        if self.choices is not None:
            return [f"choices concern type=categorical; with type={self.type} give low and high"]
        if self.low is None or self.high is None:
            return [f"type={self.type} needs low and high"]
        low, high, step = self.low, self.high, self.step
        problems = []
        if not low < high:
            problems.append(f"low={low:g} must be less than high={high:g}")
        if self.log and low <= 0:
            problems.append(f"log: low={low:g} must be more than 0, which has no logarithm")
        if step is not None and self.log:
            problems.append(f"step={step:g} and log do not go together; leave one of them out")
        elif step is not None and step <= 0:
            problems.append(f"step={step:g} must be more than 0")
        elif step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-6:
            problems.append(f"high={high:g} must be low={low:g} plus a multiple of step={step:g}")
        odd = [f"{k}={v:g}" for k, v in (("low", low), ("high", high), ("step", step or 1)) if v != round(v)]
        if self.type == "int" and odd:
            problems.append(f"type=int takes whole numbers, not {odd[0]}; write type: float")
        return problems


def _flat(value: Any) -> Any:
    """Entries under dotted names: `optim.rate: {…}` and `optim: {rate: {…}}` say the same; what comes later counts."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        is_section = isinstance(entry, Mapping) and entry and not _ENTRY & entry.keys()
        inner = _flat(entry) if is_section else None
        flat |= {f"{name}.{key}": each for key, each in inner.items()} if isinstance(inner, dict) else {name: entry}
    return flat


class TuneSettings(Stage):
    stage: Literal["finetune", "pretrain"] = Field("finetune", description="what is tuned")
    finetune: FinetuneSettings = Field(FinetuneSettings(), description="its settings, but for those searched")
    pretrain: PretrainSettings = Field(PretrainSettings(), description="its settings, but for those searched")
    space: Annotated[dict[str, RangeSettings], BeforeValidator(_flat)] = Field(
        default_factory=dict,
        description="the search space, a range for each setting of the stage: '{optim.rate: {type: float, low: 1e-4, "
        "high: 1e-1, log: true}}'",
    )
    sampler: Literal["random", "grid", "tpe", "gp"] = Field(
        "tpe", description="how settings are chosen: at random, every point of a grid, or by a model of earlier trials"
    )
    pruner: Literal["none", "hyperband", "asha"] = Field(
        "hyperband", description="which trials are stopped early, by their score so far: none, or all but the best"
    )
    trials: Count | None = Field(None, description="settings to try; none: 20, of a grid all")
    steps: Count | None = Field(None, description="most steps of a trial; none: what the stage's settings say")
    first_rung: Count | None = Field(
        None, description="steps before a trial is first judged; none: a 27th of its steps, or twice the warm-up"
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        3, description="a rung has this many times the steps of the one below it, which one trial in so many passes"
    )
    score: Literal["probe", "knn"] = Field(
        "probe", description="of pretrain: what is to be high, on training images; of finetune it is the score on val"
    )
    workers: Count = Field(1, description="processes here; more may join with the same command and out=")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        other = "pretrain" if self.stage == "finetune" else "finetune"
        if other in self.model_fields_set:
            problems.append(f"{other}: tune has stage={self.stage}, which does not read it; leave it out")
        base = self.pretrain if self.stage == "pretrain" else self.finetune
        own = [f"{self.stage}.{key}" for key in _OWN[self.stage] if key in base.model_fields_set]
        if own:
            problems.append(f"{' and '.join(own)}: tune sets these itself; leave them out")
        if self.steps is not None:
            given = [f"{self.stage}.{key}" for key in LENGTHS[self.stage] if key in base.model_fields_set]
            given += [f"space: {key}" for key in LENGTHS[self.stage] if key in self.space]
            if given:
                problems.append(f"{' and '.join(given)}: steps={self.steps} says how long trials are; give one of them")
        if self.stage == "finetune" and "score" in self.model_fields_set:
            problems.append("score concerns stage=pretrain; a fine-tuning is judged by its score on val, leave it out")
        if self.sampler == "grid":
            endless = [k for k, v in self.space.items() if v.type == "float" and v.step is None]
            problems += [
                f"space.{name}: sampler=grid needs a step, or type: categorical with choices" for name in endless
            ]
        if self.pruner == "none":
            problems += [
                f"{name} concerns pruner=hyperband and pruner=asha; leave it out"
                for name in ("first_rung", "reduction")
                if name in self.model_fields_set
            ]
        if self.threads not in (None, 1):
            problems.append(f"threads={self.threads}: each worker computes on one thread; raise workers instead")
        if problems:
            raise ValueError("\n".join(problems))
        return self
