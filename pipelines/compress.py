"""Stage compress: a classifier made smaller by a method, beside the file that runs elsewhere."""

import numpy as np

from pipelines import compress_encoder
from ssl_ft import dist, handover
from ssl_ft.build.auditing import audit, exit_code, refuse_without_test
from ssl_ft.build.compressing import Compressed, Work, labels_of
from ssl_ft.build.labels import LabelledImages, LabelSplit, split_budget, without_damaged
from ssl_ft.build.methods import METHODS
from ssl_ft.build.origins import load_whole
from ssl_ft.build.pairs import Verdict, judge_pair
from ssl_ft.build.parts import choose_device
from ssl_ft.build.predecessor import Predecessor, check_outputs, earlier_labels, find_predecessor
from ssl_ft.build.shipping import write_models
from ssl_ft.config import CompressSettings
from ssl_ft.export.extras import require_onnx
from ssl_ft.interrupt import StopWish
from ssl_ft.runlog import RunFolder


def main(settings: CompressSettings) -> int:
    """Make the model smaller and give the exit code."""
    dist.use_threads(settings.threads)
    if settings.distill is not None and settings.distill.kind == "features":
        return compress_encoder.main(settings)
    require_onnx(what="compress")
    before = find_predecessor(settings)
    labelled = handover.open_labelled(before.training)
    check_outputs(before.card, labelled.source)
    split = split_budget(before.budget, labelled.source, labelled.roles)
    refuse_without_test(labelled.source, split)
    run = handover.open_run(before.settings, labelled, stage="compress", name=f"compress-{settings.method}")
    if run.is_finished:
        return handover.already_done(run) or exit_code(run.path)
    with run:
        return _compress(before, labelled, split, run)


def _compress(before: Predecessor, labelled: handover.Labelled, split: LabelSplit, run: RunFolder) -> int:
    source, settings = labelled.source, before.settings
    run.forget_rows_after(-1)
    handover.record_roles(run, source, train=split.train, val=split.val, test=split.test)
    handover.report_duplicates(run, labelled.origin.runs(), source, split.test, data=labelled.data)
    model, card, parent = load_whole(before.folder)
    run.parents.append(parent)
    images = LabelledImages(source, labelled.data, labelled.roles.train, run.path)
    earlier = earlier_labels(before.folder, card, source, split)
    split = without_damaged(split, images, card.contract, run=run)
    handover.keep_pool_keys(run, source.subset(np.concatenate([split.train, split.val])), labelled.data)
    with StopWish() as wish:
        work = Work(
            settings, before.training, model, card, images, split, choose_device(settings.device), run, wish.__bool__,
            handover.row_logger(run),
        )  # fmt: skip
        made = METHODS[settings.method](work)
        if wish:
            run.note("stopped before the end: nothing was scored; the same command starts this stage again")
            return wish.exit_code
    verdict = _judge(made, work)
    used = labels_of(made, split, card, earlier=earlier)
    file = write_models(made, work, used)
    size, seconds = file.stat().st_size, settings.timing_seconds
    found = audit(
        file, work, run=run, num_threads=settings.threads or 1, max_drop=settings.max_drop, most_seconds=seconds,
        measures_costs=seconds > 0,
    )  # fmt: skip
    if found.is_shipped:
        run.note(f"{file.name}, {size / 1e6:.1f} MB, is the file that runs elsewhere")
    handover.write_damages(run, made.damages)
    run.write_manifest(device=str(work.device))
    run.finish(
        metrics=[*verdict.metrics, *found.metrics],
        labels_used=used.model_copy(update={"test": found.num_images}),
        test_scored=verdict.num_scored + found.num_scored,
    )
    print(run.path)
    return exit_code(run.path)


def _judge(made: Compressed, work: Work) -> Verdict:
    if made.pair is None:
        return Verdict([], 0, 0)
    return judge_pair(
        *made.pair, work.images.source, work.split.test, work.images.data, run=work.run, device=work.device,
        budget=work.training.labels, seed=work.settings.seed,
    )  # fmt: skip
