"""What all settings have in common: strictness, kinds of numbers, and what every run needs."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Span = tuple[float, float]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def unread(self, given: Collection[str]) -> list[str]:
        """A sentence for each of some settings that would have no effect beside the others.

        Asked of what was typed for this very run alone: a recipe may hold sections for whichever objective is chosen.

        Args:
            given: dotted names.
        """
        return []


def short(key: str) -> BeforeValidator:
    """Let a section be given by its main key alone: `data=photos/` for `data.path=photos/`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def over(defaults: dict[str, Any]) -> BeforeValidator:
    """Give a section defaults of its own: those its class has would come back with the first key that is set."""
    return BeforeValidator(lambda value: {**defaults, **value} if isinstance(value, dict) else value)


def several(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, (list, tuple)) else (value,)


Budget = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1, strict=True)] | Literal["all"]


class Stage(Settings):
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="decides every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    threads: Count | None = Field(None, description="CPU threads a rank; none: all cores, shared between ranks")
    out: str | None = Field(None, description="run folder; none: runs/<stage>-<data>-<digits of the settings>")
