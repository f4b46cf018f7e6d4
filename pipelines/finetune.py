"""Stage finetune: a classifier from an encoder and a few labels; stopped and chosen on val, scored once on test."""

from ssl_ft import dist, handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.anchored import unlabelled_source
from ssl_ft.build.labels import LabelledImages, LabelSplit, gap_notes, split_budget, without_damaged
from ssl_ft.build.parts import choose_device
from ssl_ft.build.scoring import score_test
from ssl_ft.build.tasks import SCORE_NAMES
from ssl_ft.build.transfer import finetune_plan, load_start, train_classifier
from ssl_ft.config import FinetuneSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.progress import ProgressLine
from ssl_ft.result import LabelsUsed
from ssl_ft.runlog import RunFolder


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
    source = labelled.source
    run.forget_rows_after(-1)
    handover.record_roles(run, source, train=split.train, val=split.val, test=split.test)
    handover.report_duplicates(run, labelled.model.parent, source, labelled.roles.test)
    device = choose_device(settings.device)
    start, parent = load_start(labelled.model)
    run.parents.append(parent)
    if settings.strategy == "scratch":
        run.note("scratch: the encoder's weights are fresh; only its architecture and input contract are used")
    contract = start.contract
    images = LabelledImages(source, labelled.data, labelled.roles.train, run.path)
    split = without_damaged(split, images, contract, run=run)
    for note in gap_notes(split, images):
        run.note(note)
    more = unlabelled_source(settings, images)
    if more is not None:
        handover.record_data(run, more, more, role="unlabelled")
    plan = finetune_plan(settings, num_train=len(split.train))
    val_scores = {f"val_{name}" for name in SCORE_NAMES.values()}
    with ProgressLine(f"finetune {settings.strategy}", total=plan.num_steps) as progress, StopWish() as wish:

        def on_row(step: int, row: dict[str, float]) -> None:
            run.log({"step": step, "kind": "eval" if "val_loss" in row else "train", **row})
            progress.update(step, " ".join(f"{k} {v:.3f}" for k, v in row.items() if k == "loss" or k in val_scores))

        trained = train_classifier(
            settings, start, images, split, device=device, should_stop=wish.__bool__, on_row=on_row
        )
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    model, names = trained.model, images.output_names
    scored = score_test(settings, model, images, split.test, contract=contract, device=device, run=run)
    metrics = scored.metrics + handover.training_metrics(trained, budget=settings.labels, model=settings.strategy)
    about = handover.provenance(f"fine-tuned ({settings.strategy})", settings.encoder, run, steps=trained.step)
    classes, targets = (names, ()) if source.task == "classes" else ((), names)
    card = ModelCard("classifier", start.spec, contract, classes, about, source.task, targets)
    save_model(run.path / "classifier", model.to("cpu"), card)
    handover.write_damages(run, trained.damages)
    run.write_manifest(device=str(device))
    used = LabelsUsed(train=len(split.train), val=trained.num_val, test=scored.num_images)
    run.finish(metrics=metrics, labels_used=used, test_scored=1)
    print(run.path)
    return 0
