"""Stage finetune: a classifier from an encoder and a few labels; stopped and chosen on val, scored once on test."""

from pathlib import Path

import numpy as np
import torch

from pipelines import handover
from ssl_ft import dist
from ssl_ft.artifact import ModelCard, find_model, save_model
from ssl_ft.build import choose_device
from ssl_ft.build_data import open_data, roles_of
from ssl_ft.build_judge import parent_data
from ssl_ft.build_transfer import (
    finetune_optimizer,
    finetune_plan,
    labelled_objective,
    split_budget,
    start_model,
)
from ssl_ft.config import FinetuneSettings
from ssl_ft.evaluate.features import compute_outputs, read_inputs
from ssl_ft.evaluate.metrics import estimate
from ssl_ft.interrupt import StopWish
from ssl_ft.progress import ProgressLine
from ssl_ft.report.tables import write_confusion
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder
from ssl_ft.transfer.finetune import finetune


def main(settings: FinetuneSettings) -> int:
    """Fine-tune and give the exit code."""
    dist.use_threads(settings.threads)
    device = choose_device(settings.device)
    folder = find_model(settings.encoder, kind="encoder")
    data = settings.data or parent_data(folder)
    source = open_data(data)
    roles = roles_of(source, data)
    split = split_budget(settings, source, roles)
    plain = settings.model_dump(mode="json") | {"data": data.model_dump(mode="json")}
    out = (
        Path(settings.out)
        if settings.out
        else default_folder(f"finetune-{settings.strategy}", Path(data.path).name, plain)
    )
    run = RunFolder(out, stage="finetune", settings=plain)
    if run.is_finished:
        return handover.already_done(run)
    run.forget_rows_after(-1)
    handover.record_data(run, source, source, role="labelled")
    model, spec, contract = start_model(settings, folder, num_classes=len(source.class_names), run=run)
    objective, store, val = labelled_objective(settings, model, source, split, data, contract, run=run.path)
    objective = objective.to(device)
    batch_size = min(settings.batch_size, len(split.train))
    plan = finetune_plan(settings, num_train=len(split.train), batch_size=batch_size)
    with ProgressLine(f"finetune {settings.strategy}", total=plan.num_steps) as progress, StopWish() as wish:

        def on_row(step: int, row: dict[str, float]) -> None:
            run.log({"step": step, "kind": "eval" if "val_loss" in row else "train", **row})
            progress.update(step, " ".join(f"{k} {v:.3f}" for k, v in row.items() if k in ("loss", "val_accuracy")))

        fitted = finetune(
            objective,
            finetune_optimizer(settings, model, batch_size=batch_size),
            store,
            val,
            contract=contract,
            plan=plan,
            batch_size=batch_size,
            patience=settings.patience,
            device=device,
            seed=settings.seed,
            should_stop=lambda: bool(wish),
            on_row=on_row,
        )
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    test = read_inputs(
        source,
        split.test,
        contract,
        max_damaged_share=data.max_damaged_share,
        max_pixels=data.max_pixels,
        workers=data.workers,
    )
    logits = compute_outputs(model, test.pixels, contract, device=device, batch_size=256)
    shares = torch.from_numpy(logits).softmax(1).numpy()
    truth, predicted = source.labels[test.indices], shares.argmax(1)  # type: ignore[index]
    budget = None if settings.labels == "all" else settings.labels
    estimates = estimate(
        truth,
        predicted[None],
        confidences=shares.max(1)[None].astype(np.float64),
        num_classes=len(source.class_names),
        seed=settings.seed,
    )
    metrics = [
        Metric(name=e.name, value=e.value, low=e.low, high=e.high, n=e.n, split="test", labels_per_class=budget,
               model=settings.strategy)
        for e in estimates
    ]  # fmt: skip
    if fitted.val_accuracy is not None:
        metrics.append(Metric(name="val_accuracy", value=fitted.val_accuracy, n=len(val.labels), split="val",
                              labels_per_class=budget, model=settings.strategy))  # fmt: skip
    about = handover.provenance(f"fine-tuned ({settings.strategy})", str(folder), run, steps=fitted.step)
    card = ModelCard("classifier", spec, contract, source.class_names, about)
    save_model(run.path / "classifier", model.to("cpu"), card)
    write_confusion(run.path, truth, predicted, source.class_names, model=settings.strategy, labels_per_class=budget)
    handover.write_damages(run, store)
    run.write_manifest(device=str(device))
    used = LabelsUsed(train=len(split.train), val=len(split.val), test=len(truth))
    run.finish(metrics=metrics, labels_used=used, test_scored=1)
    print(run.path)
    return 0
