"""What a tuning leaves: the record of its trials, the best settings as a recipe, and `result.json`."""

from datetime import date

import torch
import yaml

from ssl_ft import handover
from ssl_ft.build.origins import record_start
from ssl_ft.build.pretraining import num_labels
from ssl_ft.build.transfer import load_start
from ssl_ft.build.tuning import Tuning
from ssl_ft.build.tuning_space import trial_tree
from ssl_ft.errors import UserError
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, say, write_text
from ssl_ft.tuning.records import RangeRecord, StudyRecord, TrialRecord, write_records
from ssl_ft.tuning.space import Dimension, plain_words
from ssl_ft.tuning.study import SharedStudy

BEST = "best.yaml"


def write_result(tuning: Tuning, study: SharedStudy, run: RunFolder, *, device: torch.device) -> None:
    """Read every trial, and write what came of them; the best settings are said as well.

    Raises:
        UserError: no trial was trained to its end.
    """
    record = study_record(tuning, study, importances=study.importances())
    if record.best is None:
        reasons = [trial.reason for trial in record.trials if trial.reason]
        why = reasons[-1] if reasons else "all were pruned"
        raise UserError(
            f"not one of the {len(record.trials)} trials was trained to its end: {why}. Change the space, and choose "
            "another out="
        )
    best = record.trials[record.best]
    write_records(run.path, record)
    write_text(run.path / BEST, best_recipe(tuning, best, device=device, score=record.score))
    used = _record_sources(tuning, run)
    chosen = ", ".join(f"{name}={plain_words(value)}" for name, value in best.settings.items())
    run.note(f"the best of {len(record.trials)} trials is trial {best.number}: {chosen}")
    if failed := record.count("failed"):
        reason = next(trial.reason for trial in record.trials if trial.state == "failed")
        run.note(f"{failed} trials failed; the first: {reason}")
    run.note("test was not looked at: the stage that was tuned scores it once, with the settings in best.yaml")
    run.write_manifest(device=str(device))
    say(f"{record.score} {best.value:.4f} after {record.num_steps} steps of all trials; settings: {run.path / BEST}")
    run.finish(
        metrics=_metrics(tuning, record, best),
        labels_used=used,
        test_scored=0,
        # Of all processes together: how long one of them waited says little.
        seconds=sum(trial.seconds for trial in record.trials),
    )


def study_record(tuning: Tuning, study: SharedStudy, *, importances: dict[str, float]) -> StudyRecord:
    """The study as it stands, with importances, which take seconds to work out."""
    plan, trials = tuning.plan, study.records()
    done = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    best = max(done, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)
    return StudyRecord(
        stage=tuning.settings.stage,
        score=tuning.score,
        sampler=plan.sampler,
        pruner=plan.pruner,
        rungs=() if plan.ladder is None else plan.ladder.rungs(),
        most_steps=tuning.most_steps,
        space=tuple(map(_range_record, plan.space)),
        trials=trials,
        best=None if best is None else best.number,
        importances=importances,
        subject=plan.subject,
    )


def best_recipe(tuning: Tuning, best: TrialRecord, *, device: torch.device, score: str) -> str:
    """The trial's settings as a recipe of the tuned stage, which gives the same score again on the same device."""
    stage = tuning.settings.stage
    tree = trial_tree(tuning.settings, best.settings) | {"device": best.device or device.type}
    assert best.value is not None, "the best trial has a value"
    head = (
        f"# The best of {tuning.plan.num_trials} trials of the study {tuning.plan.name}: trial {best.number}, {score} "
        f"{best.value:.4f} ({date.today().isoformat()}).\n# Command: ssl-ft {stage} {BEST}\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _range_record(own: Dimension) -> RangeRecord:
    is_listed = own.kind == "categorical"
    ends = None if is_listed else (own.low, own.high)
    return RangeRecord(name=own.name, words=own.words(), is_log=own.is_log, ends=ends, choices=own.choices)


def _record_sources(tuning: Tuning, run: RunFolder) -> LabelsUsed:
    """Keep what was started from and read; gives the labels that all trials together used."""
    labelled, split, pool = tuning.labelled, tuning.split, tuning.pool
    if labelled is None or split is None:
        assert pool is not None, "a tuning has labelled data or a pool"
        handover.record_data(run, pool.source, pool.pool, role="pool")
        run.note(f"{tuning.num_scored} labels of training images were used to choose; they count as val")
        return LabelsUsed(train=num_labels(tuning.settings.pretrain, pool), val=tuning.num_scored)
    _, parent = load_start(labelled.origin)
    record_start(run, labelled.origin, parent)
    handover.record_roles(run, labelled.source, train=split.train, val=split.val, test=split.test, also=labelled.also)
    return LabelsUsed(
        train=len(split.train),
        val=len(split.val),
        also=len(labelled.also_indices),
        earlier=labelled.origin.num_labels,
    )


def _metrics(tuning: Tuning, record: StudyRecord, best: TrialRecord) -> list[Metric]:
    """The best score, and what finding it took."""
    is_finetune = tuning.pool is None
    labels = tuning.settings.finetune.labels if is_finetune else None
    assert best.value is not None, "the best trial has a value"

    def metric(name: str, value: float, *, split: str) -> Metric:
        per_class = None if isinstance(labels, str) else labels
        return Metric(
            name=name, value=value, n=tuning.num_scored, split=split, labels_per_class=per_class, model=record.sampler
        )

    counts = {
        "trials": len(record.trials),
        "pruned_trials": record.count("pruned"),
        "failed_trials": record.count("failed"),
        "training_steps": record.num_steps,
        "best_trial": best.number,
    }
    # The score of a pretraining is read from training images, though their labels choose.
    split = "val" if is_finetune else "train"
    return [
        metric(record.score, best.value, split=split),
        *(metric(name, value, split="train") for name, value in counts.items()),
    ]
