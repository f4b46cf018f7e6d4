"""`audit.json` as the page reads it, and what it says in a sentence. Tables and pictures are in `shipping.py`."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ssl_ft.report import formats

AUDIT = "audit.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Measured(_Record):
    """A score with its interval."""

    value: float
    low: float
    high: float


class SpeedRow(_Record):
    """Milliseconds a call of `batch` images."""

    batch: int
    median_ms: float
    low_ms: float
    high_ms: float


class MemoryRow(_Record):
    """MiB of a process that runs this model alone."""

    total_mb: float
    own_mb: float


class CostRow(_Record):
    """What one model costs."""

    name: str
    size_bytes: int
    speeds: tuple[SpeedRow, ...]
    memory: MemoryRow | None


class ScoreRow(_Record):
    """A model's score, and its calibration error where its task has one."""

    score: float | None
    calibration: float | None


class AuditFile(_Record):
    """What an audit wrote."""

    task: str
    score: str
    num_images: int
    drop: Measured
    first: str
    drop_from_first: Measured
    agreement: Measured
    max_drop: float | None
    is_shipped: bool
    threads: int
    machine: str
    scores: dict[str, ScoreRow]
    models: tuple[CostRow, ...]


def read_audit(path: Path, _problems: list[str]) -> AuditFile:
    """The file's content.

    Raises:
        ValueError: it is not what an audit writes.
    """
    return AuditFile.model_validate(json.loads(path.read_text("utf-8")))


def audit_sentence(found: AuditFile) -> str:
    """What the file lost, in a sentence."""
    name = found.score.replace("_", " ")
    opening = f"The exported file {_change(found.score, found.drop.value)} {name} against its parent"
    sure = f"95{formats.NBSP}% interval of the loss {bounds(found.score, found.drop)}"
    end = "" if found.is_shipped else f" More than max_drop={found.max_drop} allows: it was not handed over."
    return f"{opening} on {formats.counted(found.num_images, 'test image')} ({sure}).{end}"


def bounds(score: str, lost: Measured) -> str:
    """The interval of a loss: '-0.10 to 1.30', in points where the score is a share."""
    scale = 100 if formats.is_share(score) else 1
    return f"{rounded(scale * lost.low)} to {rounded(scale * lost.high)}"


def _change(score: str, drop: float) -> str:
    is_share = formats.is_share(score)
    amount = f"{abs((100 if is_share else 1) * drop):.2f}" + (f"{formats.NBSP}points" if is_share else "")
    return f"{'lost' if drop >= 0 else 'gained'} {amount} of"


def rounded(value: float) -> str:
    """Two decimals and a true minus sign."""
    return f"{value:.2f}".replace("-", formats.MINUS)
