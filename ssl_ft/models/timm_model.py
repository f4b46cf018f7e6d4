"""What every timm model can do, for the type checker: timm itself declares its models as plain modules."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn


class TimmModel(Protocol):
    """What of a timm model is called or asked for here."""

    num_features: int

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """What the head is given: a map or tokens."""

    def forward_head(self, features: Tensor) -> Tensor:
        """What the head makes of it."""

    def get_classifier(self) -> nn.Module:
        """The last layer, itself."""

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer in; with 0 outputs none, so that features come out."""

    def group_matcher(self, *, coarse: bool) -> Mapping[str, Any]:
        """Which parameters are of which layer, from input to head."""


def as_timm(model: nn.Module) -> TimmModel:
    """The very same model; nothing is looked at."""
    return cast(TimmModel, model)
