"""What a check says: a finding, and findings as plain lines or, at a terminal, as a table. The checks judge, not this.

No torch here, so that a broken installation of it can still be told.
"""

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ssl_ft.errors import system_sentence

Verdict = Literal["pass", "fail", "cannot check"]

_WIDTH = 120
_MOST_OF_A_REASON = 300
_COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "cannot check": "yellow"}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: the check's name in `examine.CHECKS`.
        verdict: "fail" where a promise does not hold here, "cannot check" where there is nothing to hold it against.
        measured: what was seen, in figures.
        advice: what to do; empty where there is nothing to do.
    """

    name: str
    verdict: Verdict
    measured: str
    advice: str = ""


def sentence_of(error: BaseException) -> str:
    """One line about an error, for people who read no tracebacks."""
    told = system_sentence(error)
    if told is not None:
        return told
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MOST_OF_A_REASON] if text else type(error).__name__


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether any verdict is "fail"."""
    return any(finding.verdict == "fail" for finding in findings)


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as plain lines of at most 120 characters where words allow: name, verdict, figures, advice."""
    first = max([len("check"), *(len(finding.name) for finding in findings)]) + 2
    second = max(map(len, _COLOURS)) + 2
    lines = [f"{'check':<{first}}{'verdict':<{second}}measured, and what to do"]
    for finding in findings:
        texts = _wrapped(finding.measured, _WIDTH - first - second)
        if finding.advice:
            advice = _wrapped(finding.advice, _WIDTH - first - second - 3)
            texts += [f"{'   ' if number else '-> '}{line}" for number, line in enumerate(advice)]
        heads = [f"{finding.name:<{first}}{finding.verdict:<{second}}", *[" " * (first + second)] * len(texts)]
        lines += [f"{head}{text}".rstrip() for head, text in zip(heads, texts, strict=False)]
    return [*lines, _count(findings)]


def print_findings(findings: Sequence[Finding]) -> None:
    """The findings on stdout: coloured at a terminal, plain elsewhere."""
    if not sys.stdout.isatty():
        print("\n".join(as_lines(findings)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "verdict", "measured", "what to do")
    for finding in findings:
        verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
        table.add_row(Text(finding.name), verdict, Text(finding.measured), Text(finding.advice))
    console = Console()
    console.print(table)
    console.print(Text(_count(findings)))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _count(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _COLOURS)
