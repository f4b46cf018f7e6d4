"""Learning rate over steps, and durations turned into steps. Pure functions; no optimizer is touched here."""

import math
import re

from ssl_ft.errors import UserError


def warmup_cosine(step: int, *, num_steps: int, warmup_steps: int, final_share: float = 0.0) -> float:
    """The factor on the peak learning rate at `step`, 0-based.

    Rises linearly, 1/warmup at step 0, to 1 at the last warm-up step; then half a cosine that reaches
    `final_share` one step after the last, so that no step is wasted at 0 (Loshchilov & Hutter 2017, eq. 5).

    Returns:
        A Python float in (0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * done))


def scaled_rate(rate: float, *, rule: str, batch_size: int) -> float:
    """Peak learning rate: 'linear' is rate·B/256, 'sqrt' is rate·√B (Chen et al. 2020, B.1), 'none' is rate."""
    return {"linear": rate * batch_size / 256, "sqrt": rate * math.sqrt(batch_size), "none": rate}[rule]


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|minutes?)\s*")


def parse_duration(text: str) -> tuple[float, str]:
    """Split '20 epochs', '3000 steps' or '8 minutes' into its number and its unit ('epochs', 'steps', 'minutes').

    Raises:
        UserError: another form, or nothing at all to do.
    """
    match = _DURATION.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"{text!r} is not a duration; write for example '20 epochs', '3000 steps' or '8 minutes'")
    return float(match[1]), match[2].rstrip("s") + "s"


def epochs_to_steps(epochs: float, *, steps_per_epoch: int) -> int:
    """At least one step."""
    return max(1, round(epochs * steps_per_epoch))
