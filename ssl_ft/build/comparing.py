"""A comparison from settings: its encoders, data, cells and question; working through the cells; estimating time.

One cell is computed in `build/cells.py`; what the cells say is in `evaluate/summary.py`.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import find_model, read_card
from ssl_ft.build.cells import Bench, Stopped, budget_sizes, build_bench, compute_cell
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.grids import GRIDS
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import LabelledImages
from ssl_ft.build.strategies import STRATEGIES, Draft, with_head
from ssl_ft.claims import work_through
from ssl_ft.config import CompareSettings, DataSettings
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import MOST_CLASSES, Cell, CellKey, all_keys, cell_path, read_cell, write_cell
from ssl_ft.evaluate.summary import EncoderFacts, LeftOut, Question
from ssl_ft.transfer.exact_head import FeatureStatistics

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared on what.

    Attributes:
        settings: of the stage.
        data: of the labelled source, resolved.
        source: the labelled images.
        roles: of them; test is the part that is scored.
        folders: model folder of each encoder by its name.
        digests: SHA-256 of each encoder's weights, in that order.
        strategies: those compared.
        left_out: those not defined, with the reason.
    """

    settings: CompareSettings
    data: DataSettings
    source: Source
    roles: Roles
    folders: dict[str, Path]
    digests: tuple[str, ...]
    strategies: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def keys(self) -> list[CellKey]:
        """Every cell."""
        keys = all_keys(
            list(self.folders),
            self.strategies,
            self.settings.labels,
            draws=self.settings.draws,
            seeds=range(self.settings.seeds),
        )
        undefined = {(each.encoder, each.strategy) for each in self.left_out}
        return [key for key in keys if (key.encoder, key.strategy) not in undefined]

    def images(self, folder: Path) -> LabelledImages:
        """The labelled images; decoded pixels may lie in `folder`."""
        return LabelledImages(self.source, self.data, self.roles.train, folder)


def open_comparison(settings: CompareSettings) -> Comparison:
    """Find encoders and data, and refuse what cannot be compared before anything is computed.

    A strategy that is named must be defined for every encoder; where none is named, those not defined are left out.

    Raises:
        UserError: no encoder, data they do not take, budgets the data cannot pay, or a strategy without definition.
    """
    if not settings.encoders:
        raise UserError("compare needs encoders: `ssl-ft compare encoders=runs/pretrain-...`")
    folders = _named([find_model(each, kind="encoder") for each in settings.encoders])
    data = settings.data or _common_data(folders)
    source = open_data(data)
    roles = roles_of(source, data)
    assert source.labels is not None, "roles need labels"
    if len(source.class_names) > MOST_CLASSES:
        raise UserError(
            f"{source.location} has {len(source.class_names)} classes; compare takes {MOST_CLASSES} at most"
        )
    budget_sizes(settings.labels, roles, source.labels, seed=settings.seed, class_names=source.class_names)
    test = _part_of_test(source, roles, most=settings.test_images, seed=data.split_seed)
    roles = replace(roles, test=test)
    comparison = Comparison(
        settings, data, source, roles, folders, tuple(read_card(f)[1] for f in folders.values()), (), ()
    )
    return _with_strategies(comparison)


def plain_settings(comparison: Comparison) -> dict[str, object]:
    """Settings for the run folder: data resolved, and what the cells depend on besides, so that no two are mixed."""
    source, roles = comparison.source, comparison.roles
    return comparison.settings.model_dump(mode="json") | {
        "data": comparison.data.model_dump(mode="json"),
        "strategies": list(comparison.strategies),
        "encoder_weights": list(comparison.digests),
        "grids": {name: [dict(each) for each in GRIDS[name]] for name in comparison.strategies},
        "labelled_images": source.subset(np.sort(np.concatenate([roles.train, roles.val, roles.test]))).fingerprint(),
    }


def work(comparison: Comparison, run: Path, *, device: torch.device, is_over: Callable[[], bool],
         on_cell: Callable[[], None]) -> bool:  # fmt: skip
    """Compute the cells that are not there yet, together with all other processes on this run.

    Args:
        comparison: what is compared.
        run: its run folder.
        device: where to compute.
        is_over: whether the person wants to stop.
        on_cell: called after each cell of this process.

    Returns:
        Whether all cells are done.
    """
    cells, claims = make_folders(run)
    keys = {key.name: key for key in comparison.keys}
    benches: dict[str, Bench] = {}

    def compute(name: str) -> None:
        key = keys[name]
        if key.encoder not in benches:
            folder = comparison.folders[key.encoder]
            benches[key.encoder], _ = build_bench(
                folder, comparison.images(run), comparison.roles, device=device, seed=comparison.settings.seed
            )
        cell = compute_cell(comparison.settings, key, benches[key.encoder], should_stop=is_over)
        write_cell(cells, key, cell)
        on_cell()

    try:
        return work_through(
            claims,
            list(keys),
            is_done=lambda name: cell_path(cells, keys[name]).is_file(),
            work=compute,
            should_stop=is_over,
        )
    except Stopped:
        return False


def make_folders(run: Path) -> tuple[Path, Path]:
    """The run's folders of cells and of claims."""
    folders = run / "cells", run / "claims"
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return folders


def read_cells(comparison: Comparison, run: Path) -> list[tuple[CellKey, Cell]]:
    """Every cell of the comparison.

    Raises:
        UserError: one is damaged.
    """
    return [(key, read_cell(run / "cells", key)) for key in comparison.keys]


def question_of(comparison: Comparison, test: Indices) -> Question:
    """What the cells are to answer.

    Args:
        comparison: what was compared.
        test: int64 [N], the test images the cells predict.
    """
    settings, source = comparison.settings, comparison.source
    assert source.labels is not None, "roles need labels"
    return Question(
        data=Path(source.location).name or source.location,
        labels=source.labels[test],
        num_classes=len(source.class_names),
        encoders=tuple(_facts(name, folder) for name, folder in comparison.folders.items()),
        baseline=settings.baseline,
        tolerance=settings.tolerance,
        num_seeds=settings.seeds,
        num_resamples=settings.resamples,
        seed=settings.seed,
        left_out=comparison.left_out,
    )


def num_workers(settings: CompareSettings) -> int:
    """Processes to start here: those asked for, or one a GPU, or one a core."""
    if settings.workers is not None:
        return settings.workers
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0))


def estimate_lines(comparison: Comparison, run: Path) -> list[str]:
    """How many cells there are and how long they take, from the seconds of those done."""
    keys = comparison.keys
    measured: dict[tuple[str, str, object], list[float]] = {}
    left = []
    for key in keys:
        if cell_path(run / "cells", key).is_file():
            measured.setdefault((key.encoder, key.strategy, key.budget), []).append(
                read_cell(run / "cells", key).seconds
            )
        else:
            left.append(key)
    workers = num_workers(comparison.settings)
    done = len(keys) - len(left)
    first = (
        f"{len(keys)} cells: {len(comparison.folders)} encoders x {len(comparison.strategies)} strategies x "
        f"{len(comparison.settings.labels)} budgets x {comparison.settings.draws} draws x {comparison.settings.seeds} "
        f"seeds; {done} are done"
    )
    if not measured:
        return [first, "no cell has been measured yet: start it, and ask again after some cells"]
    seconds = sum(_expected(key, measured) for key in left)
    return [first, f"the rest takes about {seconds / workers / 60:.0f} minutes with {workers} workers"]


def _expected(key: CellKey, measured: dict[tuple[str, str, object], list[float]]) -> float:
    """Seconds of a cell: of its like, else of its strategy, else of all."""
    own = measured.get((key.encoder, key.strategy, key.budget))
    alike = own or [s for (_, strategy, _), found in measured.items() for s in found if strategy == key.strategy]
    return float(np.mean(alike or [s for found in measured.values() for s in found]))


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Each encoder by the name of its run folder.

    Raises:
        UserError: two of one name, which their cells could not be told apart by.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name = (folder.parent if folder.name == "encoder" else folder).resolve().name
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        if name in named:
            raise UserError(f"encoders={named[name]} and {folder} are both called {name!r}; rename one of the folders")
        named[name] = folder
    return named


def _common_data(folders: dict[str, Path]) -> DataSettings:
    found = {name: parent_data(folder) for name, folder in folders.items()}
    first, *others = found.values()
    if any(other != first for other in others):
        raise UserError(
            f"the encoders {', '.join(found)} were pretrained on different data; name the labelled set with data="
        )
    return first


def _part_of_test(source: Source, roles: Roles, *, most: int | None, seed: int) -> Indices:
    """Test, or a stratified seeded part of it: comparisons on one set are scored on the same images."""
    assert source.labels is not None, "roles need labels"
    if most is None or most >= len(roles.test):
        return roles.test
    return label_budget(source.labels, roles.test, per_class=most / len(roles.test), draw=0, seed=seed)


def _with_strategies(comparison: Comparison) -> Comparison:
    """The comparison with its strategies, each tried out on each encoder.

    Raises:
        UserError: a strategy that was named, or the baseline, is not defined for an encoder.
    """
    settings = comparison.settings
    wanted = settings.strategies or tuple(name for name in STRATEGIES if name in GRIDS)
    left_out = []
    for encoder, folder in comparison.folders.items():
        for strategy, reason in _undefined(comparison, folder, wanted).items():
            if strategy in (*settings.strategies, settings.baseline):
                raise UserError(f"strategy {strategy} is not defined for the encoder {encoder}: {reason}")
            left_out.append(LeftOut(encoder, strategy, reason))
    kept = tuple(s for s in wanted if sum(each.strategy == s for each in left_out) < len(comparison.folders))
    return replace(comparison, strategies=kept, left_out=tuple(left_out))


def _undefined(comparison: Comparison, folder: Path, strategies: Sequence[str]) -> dict[str, str]:
    """Strategies that refuse an encoder, with their reason; tried with a few images and without a step.

    Raises:
        UserError: the encoder does not take these images at all.
    """
    from ssl_ft.build.transfer import load_start

    settings, roles, source = comparison.settings, comparison.roles, comparison.source
    start, _ = load_start(folder)
    images = comparison.images(folder)
    smallest = min(comparison.settings.labels, key=lambda budget: (isinstance(budget, str), budget))
    assert source.labels is not None, "roles need labels"
    few = roles.train if isinstance(smallest, str) else label_budget(
        source.labels, roles.train, per_class=smallest, draw=0, seed=settings.seed
    )  # fmt: skip
    few = few[np.unique(source.labels[few], return_index=True)[1]]
    images.inputs(few, start.contract)
    # Any will do to see whether a solver is defined; the true ones take thousands of images.
    width = int(getattr(start.encoder, "num_features"))  # noqa: B009 - timm's module is untyped
    known = FeatureStatistics(np.zeros(width), np.ones(width))
    found = {}
    for strategy in strategies:
        own = settings.finetune.model_copy(update={"strategy": strategy, "labels": 1})
        model = with_head(load_start(folder)[0].encoder, num_classes=len(source.class_names), seed=0)
        draft = Draft(model, replace(start, statistics=known), images, few, few[:0], torch.device("cpu"))
        try:
            STRATEGIES[strategy](own, draft)
        except UserError as error:
            found[strategy] = str(error)
    return found


def _facts(name: str, folder: Path) -> EncoderFacts:
    card, _ = read_card(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    seconds, pool = None, None
    with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):
        result = json.loads((folder.parent / "result.json").read_text(encoding="utf-8"))
        seconds = float(result["seconds"])
        pool = next(int(use["num_images"]) for use in result["data"] if use["role"] == "pool")
    return EncoderFacts(name, seconds, pool, card.contract.size, int(config["num_parameters"]), None)


def readable_test(comparison: Comparison, run: Path) -> Indices:
    """The test images that can be read, int64: those the cells predict."""
    folder = next(iter(comparison.folders.values()))
    return comparison.images(run).inputs(comparison.roles.test, read_card(folder)[0].contract).indices
