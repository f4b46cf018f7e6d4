"""Stage tune: many trainings with settings from a search space, judged on val alone; the best settings as a recipe."""

import os
from pathlib import Path

from ssl_ft import dist, handover
from ssl_ft.build.parts import choose_device
from ssl_ft.build.tuning import Tuning, open_tuning, plain_settings, tuning_path
from ssl_ft.build.tuning_result import study_record, write_result
from ssl_ft.build.tuning_trials import trainer
from ssl_ft.claims import waited_claim
from ssl_ft.config import TuneSettings
from ssl_ft.errors import UserError, system_sentence
from ssl_ft.interrupt import StopWish
from ssl_ft.launch import run_ranks
from ssl_ft.runlog import RunFolder, say
from ssl_ft.tuning.optuna_parts import import_optuna
from ssl_ft.tuning.records import TrialRecord
from ssl_ft.tuning.study import SharedStudy, work_on


def main(settings: TuneSettings) -> int:
    """Tune and give the exit code."""
    dist.use_threads(1)
    import_optuna()
    tuning = open_tuning(settings)
    run = _open_run(tuning)
    if run.is_finished:
        return handover.already_done(run)
    here = settings.model_copy(update={"out": str(run.path)})
    code = run_ranks(run_worker, here, num_ranks=settings.workers) if settings.workers > 1 else run_worker(here)
    if code:
        return code
    # Of all processes that see the last trial over, here or elsewhere, the first writes the result.
    with waited_claim(run.path / "claims" / "result"):
        if not run.is_finished:
            study = SharedStudy(run.path, tuning.plan)
            write_result(tuning, study, run, device=choose_device(settings.device))
    print(run.path)
    return 0


def run_worker(settings: TuneSettings) -> int:
    """Train trials in this process, with whoever else does."""
    # One thread each, so that no number depends on how many work.
    dist.use_threads(1)
    tuning = open_tuning(settings)
    run = RunFolder(Path(settings.out or ""), stage="tune", settings=plain_settings(tuning))
    run.keep()
    try:
        with StopWish() as wish:
            study = SharedStudy(run.path, tuning.plan)
            train = trainer(
                tuning, run, device=choose_device(settings.device, is_shared=True), should_stop=wish.__bool__
            )

            def on_trial(trial: TrialRecord) -> None:
                _say(tuning, study, trial)

            if not work_on(study, train=train, should_stop=wish.__bool__, on_trial=on_trial):
                say("stopped: trials that are over are kept, and the same command goes on")
                return wish.exit_code
    except OSError as error:  # told by a sentence, as in the process that started this one
        raise UserError(system_sentence(error) or str(error)) from error
    return 0


def _say(tuning: Tuning, study: SharedStudy, trial: TrialRecord) -> None:
    """A line on a trial that ended."""
    record = study_record(tuning, study, importances={})
    ended = {"complete": f"{tuning.score} {trial.value or 0:.4f}", "pruned": "pruned", "failed": trial.reason}
    best = "" if record.best is None else f"; best {record.trials[record.best].value:.4f} (trial {record.best})"
    place = f"{len(record.in_order())} of {tuning.plan.num_trials} over"
    say(f"trial {trial.number}: {ended[trial.state]} after {trial.steps} steps{best}; {place}")


def _open_run(tuning: Tuning) -> RunFolder:
    """The run folder; of several processes that start at once, one makes it."""
    path, settings = tuning_path(tuning).absolute(), plain_settings(tuning)
    # The claim lies beside the folder, which must be empty when it is made; what is there already needs none.
    if (path / "manifest.json").is_file() or (path.is_dir() and not os.access(path.parent, os.W_OK)):
        run = RunFolder(path, stage="tune", settings=settings)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with waited_claim(path.parent / f".{path.name}.opening"):
            run = RunFolder(path, stage="tune", settings=settings)
    run.keep()
    return run
