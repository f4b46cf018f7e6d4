"""What every objective returns."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """The loss of one step.

    Attributes:
        total: scalar to back up.
        parts: what it is made of, by name, for the log; scalars.
        terms: the weighted terms whose sum is `total` where an objective joins several, with their graphs, so that
            their gradients can be compared; empty for a single term.
    """

    total: Tensor
    parts: dict[str, Tensor]
    terms: dict[str, Tensor] = field(default_factory=dict)
