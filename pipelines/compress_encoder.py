"""What compress does with distill.kind=features: a smaller encoder from unlabelled images; `compress.py` calls it."""

from pathlib import Path

import numpy as np

from ssl_ft import handover
from ssl_ft.artifact import ModelCard, save_model
from ssl_ft.build.feature_distilling import EncoderTeaching, TaughtEncoder, open_teaching, teach_encoder
from ssl_ft.build.labels import LabelledImages
from ssl_ft.build.origins import record_start
from ssl_ft.build.parts import choose_device
from ssl_ft.config import CompressSettings
from ssl_ft.interrupt import StopWish
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: CompressSettings) -> int:
    """Teach a student encoder and give the exit code."""
    teaching = open_teaching(settings)
    plain = settings.model_dump(mode="json") | {"data": teaching.data.model_dump(mode="json")}
    default = default_folder("compress-features", Path(teaching.data.path).name, plain)
    run = RunFolder(Path(settings.out) if settings.out else default, stage="compress", settings=plain)
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _teach(settings, teaching, run)


def _teach(settings: CompressSettings, teaching: EncoderTeaching, run: RunFolder) -> int:
    run.forget_rows_after(-1)
    handover.record_data(run, teaching.source, teaching.pool, role="pool")
    handover.keep_pool_keys(run, teaching.pool, teaching.data)
    pools = [run.path, *teaching.origin.runs()]
    handover.report_duplicates(run, pools, teaching.source, teaching.test, data=teaching.data)
    device = choose_device(settings.device)
    images = LabelledImages(teaching.pool, teaching.data, np.arange(len(teaching.pool)), run.path)
    with StopWish() as wish:
        made = teach_encoder(
            settings, teaching, images, device=device, should_stop=wish.__bool__,
            on_row=handover.row_logger(run),
        )  # fmt: skip
        if wish:
            run.note("stopped before the end: nothing was kept; the same command starts this stage again")
            return wish.exit_code
    record_start(run, teaching.origin, made.parent)
    if made.student.origin is not None:
        record_start(run, *made.student.origin)
    run.note(
        f"on {made.num_held_out} held-out images the mapped features explain {made.explained:.1%} of the variance of "
        f"the teacher's, mean cosine {made.cosine:.3f}; no label was looked at"
    )
    _hand_over(settings, teaching, made, run)
    run.write_manifest(device=str(device))
    earlier = _earlier(teaching, made)
    run.finish(metrics=_metrics(made), labels_used=LabelsUsed(earlier=earlier), test_scored=0)
    print(run.path)
    return 0


def _hand_over(settings: CompressSettings, teaching: EncoderTeaching, made: TaughtEncoder, run: RunFolder) -> None:
    start = made.student.start
    about = handover.provenance(
        "distilled (features)", settings.model, run, steps=made.step, num_labels=_earlier(teaching, made)
    )
    save_model(run.path / "encoder", start.encoder, ModelCard("encoder", start.spec, start.contract, about=about))
    handover.write_damages(run, made.damages)


def _earlier(teaching: EncoderTeaching, made: TaughtEncoder) -> int:
    own = 0 if made.student.origin is None else made.student.origin[0].num_labels
    return teaching.origin.num_labels + own


def _metrics(made: TaughtEncoder) -> list[Metric]:
    values = {"feature_cosine": made.cosine, "explained_variance": made.explained}
    counts = {"parameters": float(made.student.num_parameters)}
    return [
        Metric(name=name, value=value, n=made.num_held_out, split="val", model="student")
        for name, value in (values | counts).items()
    ]
