"""`shift.json`: what the stage shift found, in full, for the page and other programs; read in `shift_section.py`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssl_ft.evaluate.shift import LEVEL, Difference, Shift
from ssl_ft.runlog import write_text


def write_shift(run: Path, shift: Shift, found: Sequence[Difference], *, advice: str, accounts: Sequence[str]) -> None:
    """Write `shift.json`.

    Args:
        run: the run folder.
        shift: the tests and what they say together.
        found: differences of image statistics.
        advice: what to do.
        accounts: how pool and target meet the encoder's input contract, in sentences.
    """
    content = {
        "level": LEVEL,
        "is_shifted": shift.is_shifted,
        "effect": shift.effect,
        "grade": shift.grade,
        "seen_by": shift.seen_by,
        "advice": advice,
        "accounts": list(accounts),
        "tests": [{"space": t.space, **asdict(t.outcome), "p_holm": t.adjusted} for t in shift.tests],
        "differences": [asdict(difference) for difference in found],
    }
    write_text(run / "shift.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
