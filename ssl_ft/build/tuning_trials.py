"""The trials of a tuning: a fine-tuning or a pretraining with the settings of one, its score reported on the way.

Which settings, and when to stop, is the study's (`tuning/study.py`). Test images are not reached from here.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssl_ft.build.labels import LabelledImages, with_also, without_damaged
from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.build.transfer import finetune_plan, load_start, train_classifier
from ssl_ft.build.tuning import Tuning
from ssl_ft.build.tuning_space import trial_settings
from ssl_ft.config import FinetuneSettings, PretrainSettings
from ssl_ft.errors import UserError, system_sentence
from ssl_ft.pretraining import train
from ssl_ft.runlog import RunFolder
from ssl_ft.transfer.finetune import LEAST_TO_CHOOSE
from ssl_ft.tuning.study import Lost, Outcome, Pruned, RunningTrial, Stopped

Train = Callable[[RunningTrial], Outcome]

# Settings of pretrain that a pool, once opened, depends on.
_OF_THE_POOL = {"batch_size", "objective", "size"}


def trainer(tuning: Tuning, run: RunFolder, *, device: torch.device, should_stop: Callable[[], bool]) -> Train:
    """What trains the trials of this process; data and encoder are read once.

    Args:
        tuning: what is tuned.
        run: its run folder.
        device: where to compute.
        should_stop: whether the person wants to stop.
    """
    build = _finetune_trainer if tuning.labelled is not None else _pretrain_trainer
    train_one = build(tuning, run, device=device, should_stop=should_stop)

    def guarded(trial: RunningTrial) -> Outcome:
        trial.device = device.type
        try:
            outcome = train_one(trial)
        except (RuntimeError, MemoryError) as error:
            # A batch too large for the memory is a bad choice of settings, and no reason to end the study.
            sentence = system_sentence(error)
            if sentence is None:
                raise
            raise UserError(sentence) from error
        if not math.isfinite(outcome.value):
            raise UserError(f"its {tuning.score} is {outcome.value}")
        return outcome

    return guarded


def _finetune_trainer(
    tuning: Tuning, run: RunFolder, *, device: torch.device, should_stop: Callable[[], bool]
) -> Train:
    labelled, split = tuning.labelled, tuning.split
    assert labelled is not None, "a fine-tuning is tuned on labelled data"
    assert split is not None, "and on the labels of a budget"
    start, _ = load_start(labelled.origin)
    # One file of decoded pixels cannot serve several processes.
    cache = "memory" if labelled.data.cache == "disk" else labelled.data.cache
    data = labelled.data.model_copy(update={"cache": cache})
    images = LabelledImages(labelled.joined, data, labelled.roles.train, run.path)
    own = labelled.source
    is_best_kept = len(split.val) >= LEAST_TO_CHOOSE
    num_outputs = len(own.class_names if own.task == "classes" else own.target_names)  # val is judged as test will be
    readable = without_damaged(with_also(split, labelled.also_indices), images, start.contract, run=run)

    def train_one(trial: RunningTrial) -> Outcome:
        settings = trial_settings(tuning.settings, trial.values)
        assert isinstance(settings, FinetuneSettings), "stage=finetune"
        num_steps = finetune_plan(settings, num_train=len(readable.train)).num_steps
        best = float("-inf")

        def on_row(step: int, row: dict[str, float]) -> None:
            nonlocal best
            trial.steps = step
            if math.isfinite(row.get(tuning.score, math.nan)):
                # Where the best weights so far are kept, that is how good the trial is.
                best = max(best, row[tuning.score]) if is_best_kept else row[tuning.score]
                trial.report(step, best, is_last=step >= num_steps)

        trained = train_classifier(
            settings, start, images, readable, num_outputs=num_outputs, device=device, should_stop=should_stop,
            on_row=on_row,
        )  # fmt: skip
        if should_stop():
            raise Stopped
        assert trained.val_accuracy is not None, "val is not empty"
        return Outcome(trained.val_accuracy, trial.steps)

    return train_one


def _pretrain_trainer(
    tuning: Tuning, run: RunFolder, *, device: torch.device, should_stop: Callable[[], bool]
) -> Train:
    pool = tuning.pool
    assert pool is not None, "a pretraining is tuned on its pool"

    is_pool_new = bool(_OF_THE_POOL & {each.name.partition(".")[0] for each in tuning.plan.space})

    def train_one(trial: RunningTrial) -> Outcome:
        settings = trial_settings(tuning.settings, trial.values)
        assert isinstance(settings, PretrainSettings), "stage=pretrain"
        folder = trial_folder(run.path, trial.number)
        if not (folder / "manifest.json").is_file():  # a process was killed before it had begun
            shutil.rmtree(folder, ignore_errors=True)
        own = RunFolder(folder, stage="pretrain", settings=settings.model_dump(mode="json"))
        work, _, _ = assemble(settings, open_pool(settings) if is_pool_new else pool, own)

        def track(step: int, row: dict[str, Any]) -> None:
            trial.steps = step
            if tuning.score in row:
                trial.report(step, row[tuning.score], is_last=step >= work.plan.num_steps)

        done = train(work, own, should_stop=should_stop, track=track)
        if done < work.plan.num_steps:
            raise Stopped
        # From the rows: a trial that was killed at its very end has nothing left to evaluate.
        scores = [row[tuning.score] for row in own.read_rows() if tuning.score in row]
        if not scores:
            raise UserError(f"it was not evaluated by {tuning.score}: too few labels of training images")
        return Outcome(float(scores[-1]), done)

    def train_and_clear(trial: RunningTrial) -> Outcome:
        folder = trial_folder(run.path, trial.number)
        try:
            outcome = train_one(trial)
        except (Pruned, UserError, RuntimeError, MemoryError):
            if trial.is_mine:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if not trial.is_mine:
            raise Lost
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    return train_and_clear


def trial_folder(run: Path, number: int) -> Path:
    """Where a trial of pretraining has its checkpoints while it is trained."""
    return run / "trials" / f"{number:04d}"
