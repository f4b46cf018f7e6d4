"""Numbers and labels as a reader wants them: percent, points, durations, label budgets.

Pure text functions. Sentences about runs are in `words.py`; nothing here knows a run folder.
"""

import math
import unicodedata

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
# Before the end of what was measured, by the side the true value lies on.
BOUND_MARKS = {"below": "<", "at": "", "above": ">"}

Budget = int | float | None
"""Labels a model may use: whole number = labels per class, share in (0, 1) = part of all labels, None = all."""

# Names whose values are shares in [0, 1] and are shown in percent.
_SHARES = {
    "macro_f1",
    "micro_f1",
    "expected_calibration_error",
    "precision",
    "recall",
    "f1",
    "average_precision",
    "mean_average_precision",
    "auroc",
    "mean_auroc",
    "accuracy_drop",
    "mean_average_precision_drop",
    "agreement",
    "top1_agreement",
}


def is_share(metric_name: str) -> bool:
    """True where values of this metric are shares in [0, 1]."""
    return metric_name.removeprefix("val_") in _SHARES or metric_name.endswith("accuracy")


def printable(text: str) -> str:
    """The text with control characters and lone surrogates replaced, so that it can stand in XML; spaces stay."""
    return "".join(char if _is_shown(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _is_shown(char: str) -> bool:
    # Python calls every space but the plain one unprintable, the no-break space of our own numbers among them.
    return char.isprintable() or unicodedata.category(char) == "Zs"


def percent(share: float) -> str:
    """0.9461 -> '94.6 %' (no-break space)."""
    if not math.isfinite(share):
        return DASH
    return f"{100 * share:.1f}{NBSP}%"


def points(later: float, earlier: float) -> str:
    """The signed difference of two shares in points: '+4.5 points'.

    It is taken between the values as they are printed, so that the page adds up for its reader.
    """
    difference = round(100 * later, 1) - round(100 * earlier, 1)
    sign = "+" if difference >= 0 else MINUS
    unit = "point" if f"{abs(difference):.1f}" == "1.0" else "points"
    return f"{sign}{abs(difference):.1f}{NBSP}{unit}"


def number(value: float) -> str:
    """A plain number with four significant digits and a true minus sign; a dash where it is not finite."""
    if not math.isfinite(value):
        return DASH
    return f"{value:.4g}".replace("-", MINUS)


def measured(metric_name: str, value: float) -> str:
    """A value of the named metric: percent for shares, a plain number otherwise."""
    return percent(value) if is_share(metric_name) else number(value)


def interval(metric_name: str, low: float | None, high: float | None) -> str:
    """'94.0–95.2' (percent without its sign for shares); empty where there is no interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if is_share(metric_name):
        return f"{100 * low:.1f}{DASH}{100 * high:.1f}"
    return f"{number(low)}{DASH}{number(high)}"


def count(value: int) -> str:
    """12000 -> '12,000'."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """'1 image', '12,000 images': the noun takes a plain s."""
    return f"{value:,}{NBSP}{noun}" + ("" if value == 1 else "s")


def large(value: int) -> str:
    """4900000 -> '4.9 million'; below a million the plain count."""
    return f"{value / 1e6:.1f}{NBSP}million" if value >= 1_000_000 else f"{value:,}"


def duration(seconds: float) -> str:
    """483 -> '8 min 3 s'; hours from 60 minutes on; tenths below ten seconds."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    if round(seconds, 1) < 10:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours:,}{NBSP}h {minutes}{NBSP}min"
    return f"{minutes}{NBSP}min {rest}{NBSP}s" if minutes else f"{rest}{NBSP}s"


def memory(megabytes: float) -> str:
    """812.4 -> '812 MB', 2048 -> '2.0 GB'."""
    if not math.isfinite(megabytes):
        return DASH
    return f"{megabytes / 1000:.1f}{NBSP}GB" if megabytes >= 1000 else f"{megabytes:.0f}{NBSP}MB"


def is_share_budget(budget: Budget) -> bool:
    """True where the budget is a share of all labels; 1.0 and above are no shares below all."""
    return isinstance(budget, float) and 0 < budget < 1


def budget_order(budget: Budget) -> tuple[int, float]:
    """Sorting key: counts per class first, then shares, all labels last."""
    if budget is None:
        return (2, 0.0)
    return (1 if is_share_budget(budget) else 0, float(budget))


def budget_words(budget: Budget) -> str:
    """'10 labels per class', '1 % of the labels', 'all labels'."""
    if budget is None:
        return "all labels"
    if is_share_budget(budget):
        return f"{100 * budget:.3g}{NBSP}% of the labels"
    return f"{counted(int(budget), 'label')} per class"


def budget_mark(budget: Budget) -> str:
    """The same as short as an axis or a table column wants it: '10', '1 %', 'all'."""
    if budget is None:
        return "all"
    return f"{100 * budget:.3g}{NBSP}%" if is_share_budget(budget) else f"{int(budget):,}"


def listed(parts: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
