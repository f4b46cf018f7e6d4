"""Stage adapt: a classifier for a target without labels, from a labelled source; beside it one of the source alone."""

import contextlib
import io

from pipelines import pretrain
from ssl_ft import dist, handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.adapting import Target, check_method, open_target, train_pair
from ssl_ft.build.continuing import INSTEAD, continued_settings, continued_words
from ssl_ft.build.draft import Start
from ssl_ft.build.labels import LabelledImages, LabelSplit, split_budget, without_damaged
from ssl_ft.build.origins import own_origin, record_start
from ssl_ft.build.pairs import judge_pair
from ssl_ft.build.parts import choose_device
from ssl_ft.build.transfer import load_start
from ssl_ft.config import AdaptSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.result import LabelsUsed
from ssl_ft.runlog import RunFolder, say


def main(settings: AdaptSettings) -> int:
    """Train, adapt, score both on the target once, and give the exit code."""
    dist.use_threads(settings.threads)
    labelled = handover.open_labelled(settings)
    split = split_budget(settings, labelled.source, labelled.roles)
    run = handover.open_run(settings, labelled, stage="adapt", name=f"adapt-{settings.method}")
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _adapt(settings, labelled, split, open_target(settings, labelled.source, folder=run.path), run)


def _adapt(
    settings: AdaptSettings, labelled: handover.Labelled, split: LabelSplit, target: Target, run: RunFolder
) -> int:
    source = labelled.source
    run.forget_rows_after(-1)
    handover.record_roles(run, source, train=split.train, val=split.val, test=split.test[:0])
    handover.record_data(run, target.source, target.unlabelled.source, role="target")
    handover.record_roles(run, target.source, train=target.test[:0], val=target.test[:0], test=target.test)
    handover.report_duplicates(run, labelled.origin.runs(), target.source, target.test, data=labelled.data)
    device, (start, parent) = choose_device(settings.device), load_start(labelled.origin)
    record_start(run, labelled.origin, parent)
    check_method(settings, start)
    images = LabelledImages(source, labelled.data, labelled.roles.train, run.path)
    split = without_damaged(split, images, start.contract, run=run)
    new_start = start
    if settings.method == "continue":
        code = _go_on(settings, labelled, start, run)
        if code:
            return code
        new_start, parent = load_start(own_origin(run.path / "continued"))
        run.parents.append(parent)
    with StopWish() as wish:
        adapted, plain = train_pair(
            settings, start, images, split, target, new_start=new_start, device=device, should_stop=wish.__bool__
        )
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    run.note("training was stopped and chosen on val images of the source; the target's labels scored, once a model")
    found = judge_pair(
        adapted, plain, target.source, target.test, target.data, run=run, device=device, budget=settings.labels,
        seed=settings.seed,
    )  # fmt: skip
    learnt = len(split.train) + plain.trained.num_val + labelled.origin.num_labels
    about = handover.provenance(
        f"adapted ({settings.method})", settings.encoder, run, steps=adapted.trained.step, num_labels=learnt
    )
    card = ModelCard("classifier", start.spec, adapted.contract, source.class_names, about)
    save_model(run.path / "classifier", adapted.trained.model, card)
    handover.write_damages(run, plain.trained.damages)
    run.write_manifest(device=str(device))
    used = LabelsUsed(train=len(split.train), val=plain.trained.num_val, test=found.num_images,
                      earlier=labelled.origin.num_labels)  # fmt: skip
    run.finish(metrics=found.metrics, labels_used=used, test_scored=found.num_scored)
    print(run.path)
    return 0


def _go_on(settings: AdaptSettings, labelled: handover.Labelled, start: Start, run: RunFolder) -> int:
    """Pretraining goes on with the target's images, in a run folder inside this one; gives its exit code."""
    model = labelled.origin.pretrained_folder(instead=INSTEAD)
    say("== pretraining goes on with the target's images")
    own = continued_settings(settings, model, start.contract, out=run.path / "continued")
    run.note(continued_words(own))
    with contextlib.redirect_stdout(io.StringIO()):  # the last line of stdout is this stage's own folder
        return pretrain.run(own, are_labels_watched=False)
