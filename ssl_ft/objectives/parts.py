"""What every objective returns, and what one must offer for its gradient to be cached."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


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


@runtime_checkable
class Cacheable(Protocol):
    """An objective whose loss needs all images at once, but of each only its features: `backward.py` caches those."""

    def features(self, batch: Any) -> Tensor:
        """[2B, D] features, those of all first views before those of the second."""
        ...

    def loss_of(self, features_ND: Tensor) -> LossParts:
        """The loss from the features alone."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        ...
