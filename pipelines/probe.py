"""Stage probe: how good are the features, at every label budget, beside raw pixels and the untrained encoder."""

from dataclasses import replace

import numpy as np

from ssl_ft import dist, handover
from ssl_ft.build.judging import feature_sets, needed_images, shown_images
from ssl_ft.build.parts import choose_device
from ssl_ft.config import ProbeSettings
from ssl_ft.evaluate.features import FeatureSet
from ssl_ft.evaluate.judge import Judgement, check_budgets, judge
from ssl_ft.progress import ProgressLine
from ssl_ft.report.probe_pictures import write_embedding, write_neighbours
from ssl_ft.report.tables import write_confusion
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder


def main(settings: ProbeSettings) -> int:
    """Judge the encoder and give the exit code."""
    dist.use_threads(settings.threads)
    labelled = handover.open_labelled(settings)
    source = labelled.source
    assert source.labels is not None, "roles need labels"
    names, roles = source.class_names, labelled.roles
    check_budgets(settings.labels, source.labels, roles, class_names=names, seed=settings.seed)
    run = handover.open_run(settings, labelled, stage="probe", name="probe")
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _probe(settings, labelled, run)


def _probe(settings: ProbeSettings, labelled: handover.Labelled, run: RunFolder) -> int:
    source, names = labelled.source, labelled.source.class_names
    roles = labelled.roles
    handover.record_roles(run, source, train=roles.train, val=roles.val, test=roles.test)
    device = choose_device(settings.device)
    handover.report_duplicates(run, labelled.origin.runs(), source, labelled.roles.test, data=labelled.data)
    needed = needed_images(
        source, roles, labelled.data, labelled.origin.card.contract, budgets=settings.labels,
        draws=settings.draws, seed=settings.seed,
    )  # fmt: skip
    if needed.drawn is not None:
        run.note(f"features of {len(needed.roles.train)} of {len(roles.train)} training images serve these budgets")
    sets = feature_sets(
        labelled.origin, source, needed.roles, labelled.data, run=run, device=device,
        batch_size=settings.batch_size, has_baselines=settings.baselines, seed=settings.seed,
    )  # fmt: skip
    fits = len(sets) * sum(1 if budget == "all" else settings.draws for budget in settings.labels)
    judged: dict[str, list[Judgement]] = {}
    with ProgressLine("probe fits", total=fits) as progress:
        for each in sets:
            judged[each.model] = judge(
                each.features, each.labels, each.roles, budgets=settings.labels, draws=settings.draws,
                num_neighbours=settings.knn, num_classes=len(names), class_names=names, seed=settings.seed,
                drawn=needed.places(each.indices), on_progress=progress.advance,
            )  # fmt: skip
    metrics = [metric for model, all_of in judged.items() for one in all_of for metric in _metrics(one, model)]
    _write_details(run, sets[0], judged["encoder"][-1], names, seed=settings.seed)
    shown = shown_images(source, labelled.data, labelled.origin.card.contract)
    write_neighbours(run.path, sets[0], shown)
    run.write_manifest(device=str(device))
    largest = max(one.num_labels for one in judged["encoder"])
    used = LabelsUsed(train=largest, test=len(sets[0].roles.test), earlier=labelled.origin.num_labels)
    # kNN classifiers are models too: each of theirs that had neighbours enough looked at the test labels once.
    scored = fits + sum(one.num_votes for all_of in judged.values() for one in all_of)
    run.finish(metrics=metrics, labels_used=used, test_scored=scored)
    print(run.path)
    return 0


def _metrics(one: Judgement, model: str) -> list[Metric]:
    knn = [] if one.knn is None else [replace(one.knn, name="knn_accuracy")]
    return handover.as_metrics([*one.estimates, *knn], budget=one.budget, model=model)


def _write_details(
    run: RunFolder, own: FeatureSet, last: Judgement, class_names: tuple[str, ...], *, seed: int
) -> None:
    truth = own.labels[own.roles.test]
    budget = None if isinstance(last.budget, str) else last.budget
    write_confusion(run.path, truth, last.predictions[0], class_names, model="encoder", labels_per_class=budget)
    write_embedding(run.path, own, class_names, seed=seed)
    np.savez_compressed(run.path / "predictions.npz", truth=truth, predicted=last.predictions)
