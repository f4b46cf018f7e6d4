"""Rows of a benchmark as a table for a person and as JSON for a machine."""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ssl_ft import __version__
from ssl_ft.bench.timing import Row
from ssl_ft.runlog import write_text

# Wide enough for the longest row where the table goes into a file.
_WIDTH_OF_A_FILE = 160


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows to stdout, then what a reader should know about each."""
    table = Table("", "what", "ours", "peer", "ratio (95 %)", "bar", "met")
    for number, row in enumerate(rows, start=1):
        met = {True: "yes", False: "NO", None: ""}[row.is_met]
        table.add_row(str(number), row.name, _figure(row.ours, row.unit), _figure(row.peer, row.unit), _ratio(row),
                      bar_text(row), met)  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, highlight=False, markup=False)
    console.print(table)
    for number, row in enumerate(rows, start=1):
        if row.note:
            print(f"{number}: {row.note}")


def bar_text(row: Row) -> str:
    """The row's bar in words, such as 'at least 2'; empty where it has none."""
    if row.bar is None:
        return ""
    unit = f" {row.unit}" if row.bar.figure == "ours" else ""
    return f"{row.bar.relation} {row.bar.value:g}{unit}"


def to_json(row: Row) -> dict[str, Any]:
    """A row as plain values."""
    return {**asdict(row), "bar": bar_text(row) or None, "met": row.is_met}


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes if the file cannot be written; what it holds stays until rows replace it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8"):
        pass


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, and on what they were measured, to a JSON file."""
    content = {"machine": _machine(), "rows": [to_json(row) for row in rows]}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _machine() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "ssl_ft": __version__}
    for name in ("torch", "torchvision", "timm", "lightly", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.platform(), "threads": torch.get_num_threads(), "gpu": gpu, "versions": versions}


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_short(value)} {unit}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    spread = "" if row.low is None or row.high is None else f" ({_short(row.low)} to {_short(row.high)})"
    return f"{_short(row.ratio)}{spread}"


def _short(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"
