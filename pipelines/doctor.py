"""Stage doctor: does what is promised hold on this machine? A table of pass, fail and cannot check; no run folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_ft import __version__
from ssl_ft.config import DataSettings, DoctorSettings
from ssl_ft.doctor.examine import CHECKS, Circumstances, examine, examine_launched, torch_problem
from ssl_ft.doctor.finding import Finding, has_failed, print_findings
from ssl_ft.errors import UserError, short_path

if TYPE_CHECKING:
    from ssl_ft.data.source import Source


def main(settings: DoctorSettings) -> int:
    """Print the findings; 0, or 1 where a check failed."""
    if settings.out is not None:
        _check_out(Path(settings.out))
    problem = torch_problem()
    findings = _findings(settings) if problem is None else [problem]
    if os.environ.get("RANK", "0") == "0":  # the process group is gone by now
        print_findings(findings)
        if settings.out is not None:
            content = {"ssl_ft": __version__, "findings": [asdict(finding) for finding in findings]}
            Path(settings.out).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(settings.out)
    return int(has_failed(findings))


def _findings(settings: DoctorSettings) -> Sequence[Finding]:
    from ssl_ft import dist
    from ssl_ft.progress import ProgressLine

    dist.use_threads(None)
    about = Circumstances(
        device=settings.device,
        num_ranks=settings.ranks,
        memory_mb=settings.memory_mb,
        folder=Path(settings.folder),
        open_source=None if settings.data is None else partial(_open, settings.data),
    )
    names = [name for name in CHECKS if name in settings.checks or not settings.checks]
    if dist.is_launched():
        return examine_launched(names, about)
    with ProgressLine("checks", total=len(names)) as progress:
        return examine(names, about, on_done=progress.advance)


def _open(data: DataSettings) -> "Source":
    from ssl_ft.build.data import open_data

    return open_data(data)


def _check_out(out: Path) -> None:
    """Refuse a place for the JSON before a minute is spent on what is to be written there."""
    if out.is_dir():
        raise UserError(
            f"out={short_path(out)} is a folder; name the JSON file to write, such as {out / 'doctor.json'}"
        )
    if not out.parent.is_dir():
        raise UserError(
            f"out={short_path(out)}: there is no folder {short_path(out.parent)}; make it, or write elsewhere"
        )
