"""What a strategy of fine-tuning begins with: the weights of a start under a fresh head, and what it may look at."""

from dataclasses import dataclass

import torch
from torch import nn

from ssl_ft.artifact import InputContract
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.config import FinetuneSettings
from ssl_ft.models.encoders import EncoderSpec
from ssl_ft.models.timm_model import as_timm
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.exact_head import FeatureStatistics
from ssl_ft.transfer.strategy import head_names


@dataclass(frozen=True, eq=False)
class Start:
    """The weights a fine-tuning starts from; nothing below changes them.

    Attributes:
        encoder: timm's module without head.
        spec: its architecture.
        contract: its input.
        statistics: of its features, where they are known already; None has them computed where they are needed.
    """

    encoder: nn.Module
    spec: EncoderSpec
    contract: InputContract
    statistics: FeatureStatistics | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """What a strategy begins with.

    Attributes:
        model: a copy of the encoder with a fresh head, on the device; the strategy's own.
        start: where it comes from.
        images: the labelled images.
        train: int64, what may be trained on.
        val: int64, what may be chosen on; empty in a training that chooses nothing any more.
        device: where to compute.
    """

    model: nn.Module
    start: Start
    images: LabelledImages
    train: Indices
    val: Indices
    device: torch.device


def with_head(encoder: nn.Module, *, num_classes: int, seed: int) -> nn.Module:
    """The encoder itself, with a fresh head that depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier head") >> 1)
        as_timm(encoder).reset_classifier(num_classes)
    return encoder


def full_rates(settings: FinetuneSettings, model: nn.Module) -> dict[str, float]:
    """Factor on the learning rate of each parameter where all move: the head's is 1, the encoder's its share."""
    in_head = head_names(model)
    return {name: 1.0 if name in in_head else settings.encoder_rate_share for name, _ in model.named_parameters()}
