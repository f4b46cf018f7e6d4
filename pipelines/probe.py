"""Stage probe: how good are the features, at every label budget, beside raw pixels and the untrained encoder."""

from pathlib import Path

import numpy as np

from pipelines import handover
from ssl_ft import dist
from ssl_ft.artifact import find_model
from ssl_ft.build import choose_device
from ssl_ft.build_data import open_data, roles_of
from ssl_ft.build_judge import feature_sets, parent_data
from ssl_ft.config import ProbeSettings
from ssl_ft.evaluate.features import FeatureSet
from ssl_ft.evaluate.judge import Judgement, check_budgets, judge
from ssl_ft.progress import ProgressLine
from ssl_ft.report.probe_pictures import write_embedding, write_neighbours
from ssl_ft.report.tables import write_confusion
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: ProbeSettings) -> int:
    """Judge the encoder and give the exit code."""
    dist.use_threads(settings.threads)
    model = find_model(settings.encoder, kind="encoder")
    data = settings.data or parent_data(model)
    source = open_data(data)
    roles = roles_of(source, data)
    assert source.labels is not None, "roles need labels"
    check_budgets(settings.labels, source.labels, roles, class_names=source.class_names, seed=settings.seed)
    plain = settings.model_dump(mode="json") | {"data": data.model_dump(mode="json")}
    out = Path(settings.out) if settings.out else default_folder("probe", Path(data.path).name, plain)
    run = RunFolder(out, stage="probe", settings=plain)
    if run.is_finished:
        return handover.already_done(run)
    handover.record_data(run, source, source, role="labelled")
    sets = feature_sets(
        model,
        source,
        roles,
        data,
        run=run,
        device=choose_device(settings.device),
        batch_size=settings.batch_size,
        has_baselines=settings.baselines,
        seed=settings.seed,
    )
    fits = len(sets) * sum(1 if budget == "all" else settings.draws for budget in settings.labels)
    done, metrics, judged = 0, [], {}
    with ProgressLine("probe fits", total=fits) as progress:

        def tick() -> None:
            nonlocal done
            done += 1
            progress.update(done)

        for each in sets:
            judged[each.model] = judge(
                each.features,
                each.labels,
                each.roles,
                budgets=settings.labels,
                draws=settings.draws,
                num_neighbours=settings.knn,
                num_classes=len(source.class_names),
                class_names=source.class_names,
                seed=settings.seed,
                on_progress=tick,
            )
            metrics += [metric for one in judged[each.model] for metric in _metrics(one, each.model)]
    _write_details(run, sets[0], judged["encoder"][-1], source.class_names, settings)
    run.write_manifest()
    largest = max(one.num_labels for one in judged["encoder"])
    used = LabelsUsed(train=largest, test=len(sets[0].roles.test))
    run.finish(metrics=metrics, labels_used=used, test_scored=fits)
    print(run.path)
    return 0


def _metrics(one: Judgement, model: str) -> list[Metric]:
    budget = None if isinstance(one.budget, str) else one.budget
    named = [(e.name, e) for e in one.estimates] + ([("knn_accuracy", one.knn)] if one.knn else [])
    return [
        Metric(
            name=name, value=e.value, low=e.low, high=e.high, n=e.n, split="test", labels_per_class=budget, model=model
        )
        for name, e in named
    ]


def _write_details(
    run: RunFolder, own: FeatureSet, best: Judgement, class_names: tuple[str, ...], settings: ProbeSettings
) -> None:
    truth = own.labels[own.roles.test]
    budget = None if isinstance(best.budget, str) else best.budget
    write_confusion(run.path, truth, best.predictions[0], class_names, model="encoder", labels_per_class=budget)
    write_embedding(run.path, own, class_names, seed=settings.seed)
    write_neighbours(run.path, own)
    np.savez_compressed(run.path / "predictions.npz", truth=truth, predicted=best.predictions)
