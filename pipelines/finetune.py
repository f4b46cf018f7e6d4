"""Stage finetune: a classifier from an encoder and a few labels; stopped and chosen on val, scored once on test."""

import numpy as np

from ssl_ft import dist, handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.anchored import unlabelled_source
from ssl_ft.build.labels import LabelledImages, LabelSplit, gap_notes, split_budget, with_also, without_damaged
from ssl_ft.build.origins import record_start
from ssl_ft.build.parts import choose_device
from ssl_ft.build.scoring import score_test
from ssl_ft.build.tasks import SCORE_NAMES, training_notes
from ssl_ft.build.transfer import finetune_plan, load_start, train_classifier
from ssl_ft.config import FinetuneSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder
from ssl_ft.transfer.outputs import first_outputs


def main(settings: FinetuneSettings) -> int:
    """Fine-tune and give the exit code."""
    dist.use_threads(settings.threads)
    labelled = handover.open_labelled(settings)
    split = split_budget(settings, labelled.source, labelled.roles)
    run = handover.open_run(settings, labelled, stage="finetune", name=f"finetune-{settings.strategy}")
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _finetune(settings, labelled, split, run)


def _finetune(settings: FinetuneSettings, labelled: handover.Labelled, split: LabelSplit, run: RunFolder) -> int:
    source, data, origin = labelled.source, labelled.data, labelled.origin
    run.forget_rows_after(-1)
    handover.record_roles(run, source, train=split.train, val=split.val, test=split.test, also=labelled.also)
    handover.report_duplicates(run, origin.runs(), source, labelled.roles.test, data=data, also=labelled.also)
    device = choose_device(settings.device)
    start, parent = load_start(origin)
    record_start(run, origin, parent, are_weights_used=settings.strategy != "scratch")
    if settings.strategy == "scratch":
        run.note("scratch: the encoder's weights are fresh; only its architecture and input contract are used")
    contract = start.contract
    # What is scored are images of the source, and its outputs; what is trained on may be more.
    own = LabelledImages(source, data, labelled.roles.train, run.path)
    images = LabelledImages(labelled.joined, data, labelled.roles.train, run.path)
    split = without_damaged(with_also(split, labelled.also_indices), images, contract, run=run)
    handover.keep_pool_keys(run, labelled.joined.subset(np.concatenate([split.train, split.val])), data)
    for note in [*gap_notes(split, own), *training_notes(settings, num_val=len(split.val), device=device)]:
        run.note(note)
    more = unlabelled_source(settings, images)
    if more is not None:
        handover.record_data(run, more, more, role="unlabelled")
    plan = finetune_plan(settings, num_train=len(split.train))
    log = handover.row_logger(run)
    val_scores = {f"val_{name}" for name in SCORE_NAMES.values()}
    with ProgressLine(f"finetune {settings.strategy}", total=plan.num_steps) as progress, StopWish() as wish:

        def on_row(step: int, row: dict[str, float]) -> None:
            log(step, row)
            progress.update(step, " ".join(f"{k} {v:.3f}" for k, v in row.items() if k == "loss" or k in val_scores))

        trained = train_classifier(
            settings, start, images, split, num_outputs=len(own.output_names), device=device,
            should_stop=wish.__bool__, on_row=on_row,
        )  # fmt: skip
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    model, names = first_outputs(trained.model, len(own.output_names)), own.output_names
    scored = score_test(settings, model, own, split.test, contract=contract, device=device, run=run)
    metrics = scored.metrics + handover.training_metrics(trained, budget=settings.labels, model=settings.strategy)
    used = handover.labels_used(
        split, trained, origin, num_own=len(source), num_test=scored.num_images, settings=settings
    )
    learnt = used.train + used.val + used.also + used.earlier
    about = handover.provenance(
        f"fine-tuned ({settings.strategy})", settings.encoder, run, steps=trained.step, num_labels=learnt
    )
    classes, targets = (names, ()) if source.task == "classes" else ((), names)
    card = ModelCard("classifier", start.spec, contract, classes, about, source.task, targets)
    save_model(run.path / "classifier", model.to("cpu"), card)
    handover.write_damages(run, trained.damages)
    run.write_manifest(device=str(device))
    run.finish(metrics=metrics, labels_used=used, test_scored=1)
    print(run.path)
    return 0
