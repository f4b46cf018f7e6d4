"""Run folders as frozen records: finds them, reads `result.json` strictly and everything optional tolerantly.

What an optional file holds beyond reading is said in `Run.problems` and shown on the page, never hidden.
No sentences, no figures, and nothing is imported from the stages that wrote the folders.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ssl_ft.errors import UserError
from ssl_ft.report.extras import Extras, read_extras

SCHEMA_VERSION = 1
# A stage that only calls others repeats their numbers in its own result.json.
_GATHERING_STAGES = {"demo", "run", "report"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Parent(_Record):
    """An artifact this run was made from."""

    path: str
    sha256: str | None = None
    kind: str | None = None
    ancestors: tuple["Parent", ...] = ()


class DataUse(_Record):
    """One data set in one role (pool, train, val, test)."""

    role: str
    location: str = ""
    kind: str | None = None
    num_images: int | None = None
    fingerprint: str | None = None


class Metric(_Record):
    """One measured value; `low` and `high` bound its 95 % interval where one applies."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    split: str | None = None
    labels_per_class: int | float | None = None
    model: str | None = None
    target: str | None = None


class Result(_Record):
    """`result.json`: what a stage measured."""

    schema_version: int
    stage: str
    run: str = ""
    parents: tuple[Parent, ...] = ()
    settings: dict[str, Any] = {}
    data: tuple[DataUse, ...] = ()
    labels_used: dict[str, Any] = {}
    test_scored: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    metrics: tuple[Metric, ...] = ()


class Manifest(_Record):
    """`manifest.json`: what a stage was asked to do, and with what."""

    created: str = ""
    command: str | list[str] = ""
    settings: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    device: str | None = None
    num_ranks: int | None = None
    parents: tuple[Parent, ...] = ()
    notes: tuple[str, ...] = ()
    data: tuple[DataUse, ...] = ()


@dataclass(frozen=True)
class Run:
    """One finished run as far as its folder tells it; `parent_names` name other runs of the same report."""

    folder: Path
    name: str
    result: Result
    manifest: Manifest
    extras: Extras
    problems: tuple[str, ...]
    parent_names: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return self.result.stage

    @property
    def data(self) -> tuple[DataUse, ...]:
        """Data uses: the manifest's rows where it has them (they carry the kind), else the result's."""
        return self.manifest.data or self.result.data

    @property
    def parents(self) -> tuple[Parent, ...]:
        """What the run started from."""
        return self.result.parents or self.manifest.parents

    @property
    def settings(self) -> dict[str, Any]:
        return self.result.settings or self.manifest.settings


@dataclass(frozen=True)
class Gathered:
    """Runs in order of lineage (parents first), and names of folders that hold an unfinished run."""

    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]


def gather_runs(folders: Sequence[Path]) -> Gathered:
    """Reads every run in `folders` and one level below them, parents before children.

    Raises:
        UserError: A folder is missing or holds no run; a `result.json` is unreadable or of a newer schema.
    """
    found: dict[Path, None] = {}
    unfinished: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"No such run folder: {folder}. Give a run folder, or a folder that contains run folders.")
        places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        finished = [place for place in places if (place / "result.json").is_file()]
        if not finished:
            raise UserError(
                f"No run in {folder}: neither it nor a folder directly inside it has a result.json. "
                "A stage writes it when it ends; give the folder that the stage printed on its last line."
            )
        found.update(dict.fromkeys(place.resolve() for place in finished))
        started = (place for place in places if place not in finished and (place / "manifest.json").is_file())
        unfinished.update(dict.fromkeys(place.resolve() for place in started))
    if not found:
        raise UserError("No run folder was given. Give at least one run folder, or a folder that contains some.")
    runs = [_read_run(folder, name) for folder, name in _names(list(found)).items()]
    leaves = [run for run in runs if run.stage not in _GATHERING_STAGES] or runs
    return Gathered(_in_order(_with_parents(leaves)), tuple(sorted(path.name for path in unfinished)))


def _names(folders: list[Path]) -> dict[Path, str]:
    """Shortest endings of the paths that tell the folders apart: the name alone where it is unique."""
    names = {folder: folder.name for folder in folders}
    depth = 2
    while len(set(names.values())) < len(names):
        taken = list(names.values())
        for folder, name in names.items():
            if taken.count(name) > 1:
                names[folder] = "/".join(folder.parts[-depth:])
        depth += 1
    return names


def _read_run(folder: Path, name: str) -> Run:
    problems: list[str] = []
    result = _read_result(folder / "result.json")
    manifest = Manifest()
    if (folder / "manifest.json").is_file():
        try:
            manifest = Manifest.model_validate(json.loads((folder / "manifest.json").read_text("utf-8")))
        except (OSError, ValueError) as error:
            problems.append(f"manifest.json could not be read ({_short(error)}) and is left out.")
    extras = read_extras(folder, problems)
    return Run(folder, name, result, manifest, extras, tuple(problems))


def _read_result(path: Path) -> Result:
    advice = "Run the stage again, or leave this folder out."
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({_short(error)}). {advice}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}; this version of ssl_ft reads up to {SCHEMA_VERSION}. "
            "Make the report with the version of ssl_ft that wrote the run, or a newer one."
        )
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a result of a stage ({_short(error)}). {advice}") from error


def _short(error: Exception) -> str:
    """One line saying where and what: a validator's whole list is too long for a sentence."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        return f"{where}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _with_parents(runs: list[Run]) -> list[Run]:
    return [replace(run, parent_names=_parent_names(run, runs)) for run in runs]


def _parent_names(run: Run, runs: list[Run]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for parent in run.parents:
        match = holders(parent, [other for other in runs if other is not run])
        names.update(dict.fromkeys(other.name for other in match))
    return tuple(names)


def holders(model: Parent, runs: Sequence[Run]) -> list[Run]:
    """The runs that a recorded model lies in: one, or none where its run is not among them."""
    path = Path(model.path)
    inside = [run for run in runs if _is_inside(path, run)]
    # Run folders get moved: then a folder's name in the recorded path still tells, if only one run bears it.
    by_name = [run for run in runs if run.folder.name in path.parts]
    return inside or (by_name if len(by_name) == 1 else [])


def _is_inside(path: Path, run: Run) -> bool:
    recorded = Path(run.result.run) if "/" in run.result.run else run.folder
    return any(path == place or place in path.parents for place in (run.folder, recorded))


_STAGE_ORDER = ("index", "pretrain", "probe", "finetune")


def _in_order(runs: list[Run]) -> tuple[Run, ...]:
    """Parents first; within a level by stage, then by name, so that the order never depends on the disk."""
    level = levels(runs)
    rank = {stage: index for index, stage in enumerate(_STAGE_ORDER)}
    return tuple(sorted(runs, key=lambda run: (level[run.name], rank.get(run.stage, len(rank)), run.stage, run.name)))


def levels(runs: Sequence[Run]) -> dict[str, int]:
    """Number of steps from the first ancestor within the report to each run, by run name.

    A run that needs a pretrained model stands at least at level 1, whether or not its parent is shown.
    """
    by_name = {run.name: run for run in runs}

    def depth(name: str, seen: frozenset[str]) -> int:
        run = by_name[name]
        above = [depth(parent, seen | {name}) for parent in run.parent_names if parent not in seen | {name}]
        return max([level + 1 for level in above], default=0 if run.stage in ("index", "pretrain") else 1)

    return {run.name: depth(run.name, frozenset()) for run in runs}
