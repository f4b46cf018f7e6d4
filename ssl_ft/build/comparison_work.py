"""Working through a comparison's cells, with other processes; how long that takes; what the cells are to answer.

Which cells there are is in `build/comparing.py`, one of them in `build/cells.py`, what they say in
`evaluate/summary.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft import dist
from ssl_ft.build.advising import encoder_facts, pretrain_cores
from ssl_ft.build.cells import Bench, Stopped, build_bench, compute_cell
from ssl_ft.build.comparing import Comparison, comparison_path, open_comparison
from ssl_ft.build.origins import Origin
from ssl_ft.build.parts import choose_device
from ssl_ft.claims import work_through
from ssl_ft.config import CompareSettings
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import (
    Cell,
    CellKey,
    cell_path,
    failure_path,
    is_over,
    read_cell,
    read_failure,
    write_cell,
    write_failure,
)
from ssl_ft.evaluate.summary import EncoderFacts, LeftOut, Question
from ssl_ft.runlog import say

Indices = NDArray[np.int64]


def work(comparison: Comparison, run: Path, *, device: torch.device, wants_stop: Callable[[], bool],
         on_cell: Callable[[], None]) -> bool:  # fmt: skip
    """Compute the cells that are not there yet, together with all other processes on this run.

    A cell that cannot be trained, because it diverged say, leaves its sentence and keeps nobody from the others.

    Args:
        comparison: what is compared.
        run: its run folder.
        device: where to compute.
        wants_stop: whether the person wants to stop.
        on_cell: called after each cell of this process.

    Returns:
        Whether all cells are over: done, or failed.

    Raises:
        UserError: data or an encoder that no cell can do without.
    """
    cells, claims = make_folders(run)
    keys = {key.name: key for key in comparison.keys}
    benches: dict[str, Bench] = {}

    def compute(name: str) -> None:
        key = keys[name]
        if key.encoder not in benches:
            origin = comparison.origins[key.encoder]
            benches[key.encoder], _ = build_bench(
                origin, comparison.images(run), comparison.roles, device=device, seed=comparison.settings.seed
            )
        try:
            write_cell(cells, key, compute_cell(comparison.settings, key, benches[key.encoder], should_stop=wants_stop))
        except UserError as error:
            # A function of its key, it would fail again wherever it is tried.
            write_failure(cells, key, str(error))
            say(f"cell {key.name} failed: {error}")
        on_cell()

    try:
        return work_through(
            claims,
            list(keys),
            is_done=lambda name: is_over(cells, keys[name]),
            work=compute,
            should_stop=wants_stop,
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


def without_failed(comparison: Comparison, run: Path) -> Comparison:
    """The comparison without the strategies that failed in a cell, each left out for that encoder with its reason.

    To be asked when all cells are over, by which every process finds the same.

    Raises:
        UserError: the baseline failed, or everything beside it; or what a failed cell left is damaged.
    """
    found = _failures(comparison, run)
    baseline = comparison.settings.baseline
    left_out = [
        LeftOut(key.encoder, key.strategy, f"cell {key.name} failed: {why} (here those settings begin with finetune.)")
        for key, why in found.values()
    ]
    rest = replace(comparison, left_out=(*comparison.left_out, *left_out))
    fatal = next((each for (_, strategy), each in found.items() if strategy == baseline), None)
    if fatal is not None:
        raise _blocked(f"the baseline {baseline} failed, which every other strategy is held against", *fatal, run=run)
    if found and all(key.strategy == baseline for key in rest.keys):
        raise _blocked(f"every strategy beside the baseline {baseline} failed", *next(iter(found.values())), run=run)
    return rest


def _failures(comparison: Comparison, run: Path) -> dict[tuple[str, str], tuple[CellKey, str]]:
    """The first failed cell of each encoder and strategy that has one, and its sentence."""
    found: dict[tuple[str, str], tuple[CellKey, str]] = {}
    for key in comparison.keys:
        reason = read_failure(run / "cells", key)
        if reason is not None:
            found.setdefault((key.encoder, key.strategy), (key, reason))
    return found


def _blocked(what: str, key: CellKey, reason: str, *, run: Path) -> UserError:
    return UserError(
        f"{what}. Cell {key.name}: {reason}. In compare these settings begin with finetune., such as "
        f"finetune.optim.rate or finetune.optim.clip_norm. Change them and give another out=, or, where "
        f"something else was mended, delete {failure_path(run / 'cells', key)} and start the same command again"
    )


def plan_comparison(settings: CompareSettings) -> list[str]:
    """What the stage would do, and how long that takes."""
    comparison = open_comparison(settings)
    roles, run = comparison.roles, comparison_path(comparison)
    left_out = [f"left out: {each.strategy} for {each.encoder}: {each.reason}" for each in comparison.left_out]
    return [
        f"encoders: {', '.join(origin.location for origin in comparison.origins.values())}",
        f"{comparison.source.location}: {len(roles.train)} train images with labels of "
        f"{len(comparison.source.class_names)} classes to draw from, {len(roles.test)} test images, each scored once a "
        "cell",
        f"strategies: {', '.join(comparison.strategies)}",
        *left_out,
        *(f"failed: cell {key.name}: {reason}" for key, reason in _failures(comparison, run).values()),
        *estimate_lines(comparison, run),
        f"run: {run}",
    ]


def estimate_lines(comparison: Comparison, run: Path) -> list[str]:
    """How many cells there are and how long they take, from the seconds of those done."""
    keys = comparison.keys
    measured: dict[tuple[str, str, object], list[float]] = {}
    left, failed = [], 0
    for key in keys:
        if cell_path(run / "cells", key).is_file():
            measured.setdefault((key.encoder, key.strategy, key.budget), []).append(
                read_cell(run / "cells", key).seconds
            )
        elif is_over(run / "cells", key):
            failed += 1
        else:
            left.append(key)
    workers = num_workers(comparison.settings)
    done = len(keys) - len(left)
    first = (
        f"{len(keys)} cells: {len(comparison.origins)} encoders x {len(comparison.strategies)} strategies x "
        f"{len(comparison.settings.labels)} budgets x {comparison.settings.draws} draws x {comparison.settings.seeds} "
        f"seeds; {done} are done" + (f", {failed} of them failed" if failed else "")
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


def question_of(comparison: Comparison, test: Indices, *, shifts: dict[str, float | None]) -> Question:
    """What the cells are to answer.

    Args:
        comparison: what was compared.
        test: int64 [N], the test images the cells predict.
        shifts: of the labelled images from each encoder's pool, by its name; None where not measured.
    """
    settings, source = comparison.settings, comparison.source
    assert source.labels is not None, "roles need labels"
    return Question(
        data=Path(source.location).name or source.location,
        labels=source.labels[test],
        num_classes=len(source.class_names),
        encoders=tuple(
            _facts(name, origin, shifts[name], is_on_cpu=choose_device(settings.device).type == "cpu")
            for name, origin in comparison.origins.items()
        ),
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
    return dist.allowed_cores()


def _facts(name: str, origin: Origin, shift: float | None, *, is_on_cpu: bool) -> EncoderFacts:
    parameters, seconds, pool = encoder_facts(origin)
    # Beside cells on a GPU, core-seconds of a processor would say nothing.
    cores = pretrain_cores(origin) if is_on_cpu else None
    return EncoderFacts(name, seconds, pool, origin.card.contract.size, parameters, shift, cores)


def readable_test(comparison: Comparison, run: Path) -> Indices:
    """The test images that can be read, int64: those the cells predict."""
    origin = next(iter(comparison.origins.values()))
    return comparison.images(run).inputs(comparison.roles.test, origin.card.contract).indices
