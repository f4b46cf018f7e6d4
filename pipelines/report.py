"""Stage report: one offline page from run folders."""

from pathlib import Path

from ssl_ft.config import ReportSettings
from ssl_ft.errors import UserError
from ssl_ft.report.page import write_report


def main(settings: ReportSettings) -> int:
    """Write the page and print its path."""
    if not settings.runs:
        raise UserError("report needs run folders: `ssl-ft report runs/demo`")
    print(write_report([Path(run) for run in settings.runs], Path(settings.out), title=settings.title))
    return 0
