"""Stage run (and demo): pretrain, probe, finetune by its strategy and from scratch, report, all below one folder."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from pipelines import finetune, pretrain, probe
from ssl_ft.build.tasks import check_task
from ssl_ft.config import RunSettings
from ssl_ft.config.strategies import READERS
from ssl_ft.errors import UserError
from ssl_ft.report.page import write_report
from ssl_ft.result import LabelsUsed, Result
from ssl_ft.runlog import say, write_text


def main(settings: RunSettings) -> int:
    """Run every stage; each goes on where it stopped, or is done already."""
    top = Path(settings.out)
    chosen = "full" if settings.finetune.strategy == "scratch" else settings.finetune.strategy
    folders = {name: str(top / name) for name in ("pretrain", "probe", f"finetune-{chosen}", "finetune-scratch")}
    _check_own(top, {*folders, "report.html", "result.json"})
    data = settings.pretrain.data
    check_task(settings.finetune, settings.finetune.data or data)  # not after hours of pretraining
    encoder = folders["pretrain"]
    stages: list[tuple[str, Callable[[], int]]] = [
        ("pretrain", lambda: pretrain.main(settings.pretrain.model_copy(update={"out": encoder}))),
        (
            "probe",
            lambda: probe.main(
                settings.probe.model_copy(
                    update={"encoder": encoder, "out": folders["probe"], "data": settings.probe.data or data}
                )
            ),
        ),
    ]
    for strategy in (chosen, "scratch"):
        name = f"finetune-{strategy}"
        update = {
            "encoder": encoder,
            "out": folders[name],
            "data": settings.finetune.data or data,
            "strategy": strategy,
        }
        if strategy == "scratch":
            update |= dict.fromkeys((*READERS, "batch_norm"))  # of the other strategy
        stages.append((name, lambda update=update: finetune.main(settings.finetune.model_copy(update=update))))  # type: ignore[misc]
    for name, stage in stages:
        say(f"== {name}")
        # Only this stage's own folder is the last line of stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            code = stage()
        if code:
            return code
    write_report([Path(folder) for folder in folders.values()], top / "report.html", title=settings.title)
    write_text(top / "result.json", _joined(settings, top, list(folders.values())).model_dump_json(indent=1) + "\n")
    say(f"open {top / 'report.html'} in a browser")
    print(top)
    return 0


def _check_own(top: Path, own: set[str]) -> None:
    """Refuse to put runs among somebody's images."""
    foreign = sorted(p.name for p in top.iterdir() if p.name not in own) if top.is_dir() else []
    if foreign:
        raise UserError(f"out={top} holds more than runs ({', '.join(foreign[:3])}); choose another folder")


def _joined(settings: RunSettings, top: Path, folders: list[str]) -> Result:
    """One result over all stages: their metrics in order, labels and scorings added up, no stage hidden."""
    parts = [
        Result.model_validate_json((Path(folder) / "result.json").read_text(encoding="utf-8")) for folder in folders
    ]
    used = {role: max(getattr(part.labels_used, role) for part in parts) for role in LabelsUsed.model_fields}
    return Result(
        stage="run",
        run=str(top),
        parents=[parent for part in parts for parent in part.parents],
        settings=settings.model_dump(mode="json"),
        data=[data for part in parts for data in part.data],
        labels_used=LabelsUsed(**used),
        test_scored=sum(part.test_scored for part in parts),
        seconds=round(sum(part.seconds for part in parts), 3),
        peak_memory_mb=max(part.peak_memory_mb for part in parts),
        metrics=[metric for part in parts for metric in part.metrics],
    )
