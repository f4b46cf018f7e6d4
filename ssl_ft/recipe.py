"""From a recipe file and key=value arguments to checked settings, with every mistake told at once.

What the settings are, and what they may be, is in `config/`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from ssl_ft.config.base import Settings
from ssl_ft.errors import UserError, short_path

S = TypeVar("S", bound=BaseModel)

# The key that a section's name alone stands for; the same as in `config.base.short`.
_MAIN_KEYS = {
    "data": "path", "pool": "path", "target": "path", "encoder": "name", "views": "recipe", "strong_views": "recipe",
    "optim": "name",
}  # fmt: skip
_NOTHING = ("null", "~")
# Sections of the recipes of `run`, which other stages are given now and then.
_RUN_SECTIONS = ("pretrain", "probe", "finetune")
# pydantic's kinds of mistakes in our words; braces are filled from its context.
_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text; put it in quotes",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "finite_number": "must be finite",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list, such as [a, b]",
    "missing": "is missing",
    "too_long": "must be a list of {max_length}",
    "too_short": "must be a list of {min_length}",
    "model_type": "is a section: give its parts",
    "dict_type": "must be 'name: value' pairs in braces",
    "invalid_key": "is no name of a setting",
}


def load_settings(cls: type[S], *, recipe: str | None, overrides: Sequence[str]) -> S:
    """Settings of a stage: defaults, then the recipe, then key=value pairs.

    A recipe for the whole way has a section a stage; a single stage takes its own section from it.

    Args:
        cls: the settings class.
        recipe: path of a YAML file, or the name of a recipe that comes with the package.
        overrides: "section.key=value". The value is YAML; where the setting is a text, the text as it stands.

    Raises:
        UserError: every mistake, one a line.
    """
    tree: dict[str, Any] = {} if recipe is None else _own_section(cls, _read_recipe(recipe))
    given: dict[str, str] = {}
    for pair in overrides:
        for key, value in _leaves(*_parse(cls, pair)):
            if key in given:
                raise UserError(f"{key} is given twice, as {given[key]!r} and as {pair!r}; give it once")
            given[key] = pair
            _put(tree, key, value, pair)
    settings, problems = checked(cls, tree)
    if isinstance(settings, Settings):
        problems = settings.unread(given)
    if settings is None or problems:
        head = "1 setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
        raise UserError("\n  ".join([f"{head}:", *problems]))
    return settings


def checked(cls: type[S], tree: Mapping[str, Any]) -> tuple[S | None, list[str]]:
    """Settings from plain values, and a sentence for each mistake; None where there is one."""
    problems = list(_booleans(cls, tree))
    settings = None
    try:
        settings = cls.model_validate(tree)
    except ValidationError as error:
        problems = [*_sentences(error, list(describe(cls))), *problems]
    return (None if problems else settings), problems


def unknown_setting(cls: type[BaseModel], name: str) -> str:
    """What to say of a dotted name that is no setting of a class: the nearest name, or where to look; else empty."""
    known = list(describe(cls))
    return "" if name in {each for each, _, _ in known} else f"unknown setting{_hint(name, known)}"


def setting_types(cls: type[BaseModel], name: str) -> set[Any]:
    """The types that a dotted setting may have, without None."""
    return _members(_annotation(cls, name))


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Give a dotted setting of plain values its value; sections are made where they are absent."""
    _put(tree, name, value, f"{name}={value}")


def _own_section(cls: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    stages = {"pretrain": "PretrainSettings", "probe": "ProbeSettings", "finetune": "FinetuneSettings"}
    if cls.__name__ not in stages.values() or not any(isinstance(tree.get(stage), dict) for stage in stages):
        return tree
    unknown = sorted(map(str, set(tree) - {*stages, "title", "out"}))
    if unknown:
        raise UserError(f"beside its sections of stages the recipe has the unknown setting {unknown[0]}; remove it")
    stage = next(stage for stage, name in stages.items() if name == cls.__name__)
    return dict(tree.get(stage) or {})


def recipe_folder() -> Path:
    """Where recipes are: beside the modules in an installed package, at the top of a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def describe(
    cls: type[BaseModel], prefix: str = "", *, given: BaseModel | None = None
) -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, line of help) of every setting of a class, sections opened; `given` has the defaults."""
    for name, info in cls.model_fields.items():
        section = _section(info.annotation)
        default = info.get_default(call_default_factory=True, validated_data={})
        if given is not None:
            default = getattr(given, name)
        if section is not None:
            own = default if isinstance(default, section) else None
            yield from describe(section, f"{prefix}{name}.", given=own)
            continue
        shown = "" if default is PydanticUndefined else _shown(default)
        yield f"{prefix}{name}", shown, info.description or ""


class _Loader(yaml.SafeLoader):
    """YAML's plain values only; a key that is there twice is an error, where PyYAML would keep the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # PyYAML lets through what Python says of a 30th of February, or of words tagged as a number.
            raise yaml.MarkedYAMLError(
                problem=f"{str(node.value)[:60]!r} is no {node.tag.rpartition(':')[2]}; a text belongs in quotes",
                problem_mark=node.start_mark,
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="braces or brackets stand where the name of a setting belongs; such a text needs quotes",
                    problem_mark=key_node.start_mark,
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key_node.value!r} is there twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from error
    finally:
        loader.dispose()


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.is_dir():
        raise UserError(
            f"{short_path(recipe)} is a folder, not a recipe; images are given as data={short_path(recipe)}"
        )
    # Only a bare name means a recipe of ours: a misspelt path must not fall back to another file.
    if not path.is_file() and len(path.parts) == 1:
        path = recipe_folder() / f"{path.stem}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(Path(recipe).stem, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"recipe {short_path(recipe)!r} is neither a file nor one of {', '.join(recipe_names())}{hint}")
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {_yaml_problem(error, is_file=True)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} holds no settings; write lines such as 'objective: simclr'")
    return tree


def _yaml_problem(error: yaml.YAMLError, *, is_file: bool) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark and is_file else str(problem)


def _parse(cls: type[BaseModel], pair: str) -> tuple[str, Any]:
    """The dotted key and the value of an argument; a section given by its main key alone becomes that key."""
    key, equals, text = pair.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{pair!r} is not key=value")
    if not text:
        raise UserError(f"{pair!r} has no value; leave it out for the default, or write {key}=null for none")
    annotation = _annotation(cls, key)
    section = _section(annotation)
    is_list = tuple[str, ...] in _members(annotation)
    is_text = is_list or section is not None or str in _members(annotation)
    quotes = ("'", '"', "[") if is_list else ("'", '"', "{") if section is not None else ("'", '"')
    if text in _NOTHING:
        return key, None
    # "photos: new" and "2024" are fine names of folders, though YAML would make a mapping and a number of them.
    if is_text and not text.startswith(quotes):
        value: Any = text
    else:
        try:
            value = _yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"{pair!r}: the value is not valid YAML ({_yaml_problem(error, is_file=False)})") from error
    last = key.rpartition(".")[2]
    if section is not None and isinstance(value, str) and last in _MAIN_KEYS:
        key = f"{key}.{_MAIN_KEYS[last]}"
    return key, value if section is None or not isinstance(value, dict) else _Section(value)


class _Section(dict[str, Any]):
    """Values of a whole section: each is put in its place, what is not named stays."""


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _Section) and value:
        for name, inner in value.items():
            yield f"{key}.{name}", inner
    else:
        yield key, value


def _put(tree: dict[str, Any], key: str, value: Any, pair: str) -> None:
    *sections, last = key.split(".")
    node = tree
    for depth, section in enumerate(sections):
        below = node.get(section)
        if isinstance(below, str):  # the recipe gave the section by its main key alone
            below = {_MAIN_KEYS.get(section, "name"): below}
        if below is not None and not isinstance(below, dict):
            raise UserError(f"{pair!r}: {'.'.join(sections[: depth + 1])} is already {below!r}, it has no parts")
        node[section] = node = dict(below or {})
    node[last] = value


def _booleans(cls: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Mistakes that pydantic would let pass: true and false where a number is wanted, which it takes as 1 and 0."""
    for name, value in tree.items():
        info = cls.model_fields.get(name)
        section = None if info is None else _section(info.annotation)
        if section is not None and isinstance(value, Mapping):
            yield from _booleans(section, value, f"{prefix}{name}.")
        elif info is not None and isinstance(value, bool) and _members(info.annotation) & {int, float}:
            yield f"{prefix}{name}: must be a number (got {str(value).lower()})"


def _annotation(cls: type[BaseModel], key: str) -> Any:
    """The type of a dotted setting; None where there is no such setting or its type is free."""
    *sections, last = key.split(".")
    for section in sections:
        info = cls.model_fields.get(section)
        below = None if info is None else _section(info.annotation)
        if below is None:
            return None
        cls = below
    return cls.model_fields[last].annotation if last in cls.model_fields else None


def _section(annotation: Any) -> type[BaseModel] | None:
    return next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _members(annotation: Any) -> set[Any]:
    """The types a setting may have, without None and pydantic's wrappings."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {member for each in get_args(annotation) for member in _members(each)}
    return set() if annotation is NoneType else {annotation}


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sentences(error: ValidationError, known: Sequence[tuple[str, str, str]]) -> list[str]:
    """One line a mistake: which setting, what is allowed, what it was given."""
    problems = error.errors()
    places = [".".join(str(part) for part in problem["loc"] if _is_key(part)) for problem in problems]
    lines = []
    for where, problem in zip(places, problems, strict=True):
        value = problem["input"]
        got = "" if isinstance(value, (dict, BaseModel)) else f" (got {_as_yaml(value)})"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown setting{_hint(where, known)}")
        elif problem["type"] == "value_error":
            for line in problem["msg"].removeprefix("Value error, ").splitlines():
                said = f"{where}: {line}" if where else line
                lines.append(said if repr(value) in line else said + got)
        elif places.count(where) > 1:  # a union tells what each of its members would have taken
            about = next((text for name, _, text in known if where.startswith(name)), "")
            lines.append(f"{where}: {_as_yaml(value)} is none of these: {about}")
        else:
            limits = {k: int(v) if v == v // 1 else v for k, v in problem.get("ctx", {}).items() if type(v) is float}
            message = _WORDS.get(problem["type"], problem["msg"]).format(**problem.get("ctx", {}) | limits)
            lines.append(f"{where}: {message}{got}")
    return list(dict.fromkeys(lines))


def _hint(where: str, known: Sequence[tuple[str, str, str]]) -> str:
    names = [name for name, _, _ in known]
    section, _, last = where.rpartition(".")
    if where in _RUN_SECTIONS:
        return "; it belongs to a recipe of `ssl-ft run`"
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(names)}
    for places, cutoff in ((beside, 0.6), (elsewhere, 0.75)):
        if near := difflib.get_close_matches(last, places, n=1, cutoff=cutoff):
            return f"; did you mean {places[near[0]]}?"
    return f"; {section} has {', '.join(beside)}" if section and beside else "; `--help` lists them all"


def _is_key(part: int | str) -> bool:
    # Unions and literals put the names of their members into the location.
    return isinstance(part, int) or (
        part.replace("_", "").replace(".", "").isidentifier() and not part.startswith(("literal", "constrained"))
    )


def _as_yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
