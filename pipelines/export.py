"""Stage export: a model as files that run elsewhere, each checked on real images in a fresh process."""

from pathlib import Path

from ssl_ft import dist, handover
from ssl_ft.build.auditing import REFUSED
from ssl_ft.build.exporting import are_all_kept, check_formats, find_exported_model, open_subject, write_files
from ssl_ft.config import ExportSettings
from ssl_ft.result import LabelsUsed
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: ExportSettings) -> int:
    """Export and give the exit code: 3 where a file was not kept."""
    dist.use_threads(settings.threads)
    folder = find_exported_model(settings)
    check_formats(settings, folder)
    plain = settings.model_dump(mode="json")
    out = Path(settings.out) if settings.out else default_folder("export", folder.parent.name, plain)
    run = RunFolder(out, stage="export", settings=plain)
    if run.is_finished:
        handover.already_done(run)
        return 0 if are_all_kept(settings, run.path) else REFUSED
    with run:
        subject = open_subject(settings, run)
        handover.record_data(run, subject.source, subject.source, role=subject.role)
        metrics = write_files(settings, subject, run)
        run.write_manifest(device="cpu")
        run.finish(metrics=metrics, labels_used=LabelsUsed(), test_scored=0)
    print(run.path)
    return 0 if are_all_kept(settings, run.path) else REFUSED
