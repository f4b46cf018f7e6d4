"""Stage compare: every strategy at every label budget on many draws, so that the best can be told, and how surely."""

from pathlib import Path

from ssl_ft import dist, handover
from ssl_ft.build.comparing import Comparison, comparison_path, open_comparison, plain_settings
from ssl_ft.build.comparison_result import write_result
from ssl_ft.build.comparison_work import make_folders, num_workers, without_failed, work
from ssl_ft.build.parts import choose_device
from ssl_ft.claims import waited_claim
from ssl_ft.config import CompareSettings
from ssl_ft.evaluate.cells import num_over
from ssl_ft.interrupt import StopWish
from ssl_ft.launch import run_ranks
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder, say


def main(settings: CompareSettings) -> int:
    """Compare and give the exit code."""
    dist.use_threads(1)
    comparison = open_comparison(settings)
    run = _open_run(comparison)
    if run.is_finished:
        return handover.already_done(run)
    here = settings.model_copy(update={"out": str(run.path)})
    workers = num_workers(settings)
    code = run_ranks(run_worker, here, num_ranks=workers) if workers > 1 else run_worker(here)
    if code:
        return code
    # Of all processes that see the last cell done, here or elsewhere, the first writes the tables.
    with waited_claim(run.path / "claims" / "tables"):
        if not run.is_finished:
            rest = without_failed(comparison, run.path)
            for left in rest.left_out[len(comparison.left_out) :]:
                run.note(f"{left.strategy} is left out for {left.encoder}: {left.reason}")
            write_result(rest, run)
    print(run.path)
    return 0


def run_worker(settings: CompareSettings) -> int:
    """Work through the cells in this process, with whoever else does."""
    # One thread each, so that no number depends on how many work.
    dist.use_threads(1)
    comparison, run = open_comparison(settings), Path(settings.out or "")
    cells, _ = make_folders(run)
    with ProgressLine("cells", total=len(comparison.keys), done=num_over(cells)) as progress, StopWish() as wish:
        is_done = work(
            comparison, run, device=choose_device(settings.device, is_shared=True), wants_stop=wish.__bool__,
            on_cell=lambda: progress.update(num_over(cells)),
        )  # fmt: skip
        if not is_done:
            say("stopped: cells that are done are kept, and the same command goes on")
            return wish.exit_code
    return 0


def _open_run(comparison: Comparison) -> RunFolder:
    """The run folder; of several processes that start at once, one makes it."""
    plain, path = plain_settings(comparison), comparison_path(comparison)
    path.parent.mkdir(parents=True, exist_ok=True)
    with waited_claim(path.with_name(f".{path.name}.opening")):
        run = RunFolder(path, stage="compare", settings=plain)
    run.keep()
    for left in comparison.left_out:
        run.note(f"{left.strategy} is not defined for {left.encoder} and is left out: {left.reason}")
    return run
