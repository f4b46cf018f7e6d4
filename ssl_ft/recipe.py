"""From a recipe file and key=value arguments to checked settings, with every mistake told at once."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from ssl_ft.errors import UserError

S = TypeVar("S", bound=BaseModel)


def load_settings(cls: type[S], *, recipe: str | None, overrides: Sequence[str]) -> S:
    """Settings of a stage: defaults, then the recipe, then key=value pairs.

    Args:
        cls: the settings class.
        recipe: path of a YAML file, or the name of a recipe that comes with the package.
        overrides: "section.key=value", the value read as YAML.

    Raises:
        UserError: every mistake, one a line.
    """
    tree: dict[str, Any] = {} if recipe is None else _read_recipe(recipe)
    for pair in overrides:
        _override(tree, pair)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, cls)) from error


def recipe_folder() -> Path:
    """Where recipes are: beside the modules in an installed package, at the top of a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if not path.is_file():
        path = recipe_folder() / f"{Path(recipe).stem}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(Path(recipe).stem, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"recipe {recipe!r} is neither a file nor one of {', '.join(recipe_names())}{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} must hold 'key: value' lines")
    return tree


def _override(tree: dict[str, Any], pair: str) -> None:
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise UserError(f"{pair!r} is not key=value")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(f"{pair!r}: the value is not valid YAML ({error})") from error
    *sections, last = key.split(".")
    node = tree
    for depth, section in enumerate(sections):
        below = node.get(section)
        if isinstance(below, str):  # a section given by its main key alone, then refined
            below = {_MAIN_KEYS.get(section, "name"): below}
        if below is not None and not isinstance(below, dict):
            raise UserError(f"{pair!r}: {'.'.join(sections[: depth + 1])} is already {below!r}, it has no parts")
        node[section] = node = dict(below or {})
    if isinstance(node.get(last), dict) and isinstance(value, str) and last in _MAIN_KEYS:
        node[last] = {**node[last], _MAIN_KEYS[last]: value}
    else:
        node[last] = value


# The key that a section's name alone stands for; the same as in `config._short`.
_MAIN_KEYS = {"data": "path", "encoder": "name", "views": "recipe", "optim": "name"}


def _explain(error: ValidationError, cls: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if _is_key(part))
        known = [name for name, _, _ in describe(cls)]
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, known, n=1, cutoff=0.5) or [
                name for name in known if name.split(".")[-1] == where.split(".")[-1]
            ]
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{where}: unknown setting{hint}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
        lines.append(f"{where}: {message}{got}" if where else message)
    # A union reports each of its members; one line a place is enough to mend it.
    places = {line.split(":")[0]: line for line in reversed(lines)}
    unique = list(dict.fromkeys(line for line in lines if places[line.split(":")[0]] == line))
    head = "1 setting is wrong" if len(unique) == 1 else f"{len(unique)} settings are wrong"
    return "\n  ".join([f"{head}:", *unique])


def _is_key(part: int | str) -> bool:
    # Unions and literals put the names of their members into the location.
    return isinstance(part, int) or (
        part.replace("_", "").isidentifier() and not part.startswith(("literal", "constrained"))
    )


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, line of help) of every setting of a class, sections opened."""
    for name, info in cls.model_fields.items():
        section = _section(info.annotation)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
            continue
        default = info.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is PydanticUndefined else _shown(default)
        yield f"{prefix}{name}", shown, info.description or ""


def _section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        inner = get_args(candidate)[0] if get_args(candidate) and not isinstance(candidate, type) else candidate
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
