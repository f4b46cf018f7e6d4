"""Stage selftrain: a teacher from few labels labels the pool, students learn from that; each scored once."""

import numpy as np

from ssl_ft import dist, handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.labels import LabelledImages, LabelSplit, split_budget, without_damaged
from ssl_ft.build.origins import record_start
from ssl_ft.build.pairs import Contender, judge_pair
from ssl_ft.build.parts import choose_device
from ssl_ft.build.selftraining import open_unlabelled, train_rounds
from ssl_ft.build.transfer import load_start
from ssl_ft.config import SelftrainSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.progress import ProgressLine
from ssl_ft.result import LabelsUsed
from ssl_ft.runlog import RunFolder
from ssl_ft.transfer.selftrain import Round


def main(settings: SelftrainSettings) -> int:
    """Train teacher and students and give the exit code."""
    dist.use_threads(settings.threads)
    labelled = handover.open_labelled(settings)
    split = split_budget(settings, labelled.source, labelled.roles)
    run = handover.open_run(settings, labelled, stage="selftrain", name="selftrain")
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _selftrain(settings, labelled, split, run)


def _selftrain(settings: SelftrainSettings, labelled: handover.Labelled, split: LabelSplit, run: RunFolder) -> int:
    source, names = labelled.source, labelled.source.class_names
    run.forget_rows_after(-1)
    handover.record_roles(run, source, train=split.train, val=split.val, test=split.test)
    handover.report_duplicates(run, labelled.origin.runs(), source, split.test, data=labelled.data)
    device = choose_device(settings.device)
    start, parent = load_start(labelled.origin)
    record_start(run, labelled.origin, parent)
    images = LabelledImages(source, labelled.data, labelled.roles.train, run.path)
    split = without_damaged(split, images, start.contract, run=run)
    handover.keep_pool_keys(run, source.subset(np.concatenate([split.train, split.val])), labelled.data)
    pool = open_unlabelled(settings, labelled, split, run=run)
    handover.record_data(run, pool.images.source, pool.images.source.subset(pool.rows), role="pool")
    rounds: list[Round] = []
    with ProgressLine("selftrain", total=settings.rounds) as progress, StopWish() as wish:

        def on_round(one: Round) -> None:
            rounds.append(one)
            run.log({"step": one.number, "kind": "eval", "val_accuracy": one.val_accuracy, "val_loss": one.val_loss})
            progress.update(one.number, f"{sum(one.num_pseudo)} pseudo-labels, val accuracy {one.val_accuracy:.3f}")

        teacher, found = train_rounds(
            settings, start, images, split, pool, device=device, should_stop=wish.__bool__,
            on_row=lambda step, row: None, on_round=on_round,
        )  # fmt: skip
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    run.note(f"{found.why_stopped}; kept: {'a student' if found.is_student else 'the teacher'}")
    run.write_table(
        "rounds.csv",
        ["round", "val_accuracy", "val_loss", "kept", *(f"pseudo: {n}" for n in names), *(f"sure: {n}" for n in names)],
        [(r.number, r.val_accuracy, r.val_loss, r.is_better, *r.num_pseudo, *r.num_sure) for r in rounds],
    )
    verdict = judge_pair(
        Contender("student", found.best, start.contract), Contender("teacher", teacher, start.contract), source,
        split.test, labelled.data, run=run, device=device, budget=settings.labels, seed=settings.seed,
    )  # fmt: skip
    learnt = len(split.train) + teacher.num_val + labelled.origin.num_labels
    about = handover.provenance(
        f"self-trained ({settings.strategy})", settings.encoder, run, steps=found.best.step, num_labels=learnt
    )
    card = ModelCard("classifier", start.spec, start.contract, names, about)
    save_model(run.path / "classifier", found.best.model, card)
    run.write_manifest(device=str(device))
    used = LabelsUsed(train=len(split.train), val=teacher.num_val, test=verdict.num_images,
                      earlier=labelled.origin.num_labels)  # fmt: skip
    run.finish(metrics=verdict.metrics, labels_used=used, test_scored=verdict.num_scored)
    print(run.path)
    return 0
