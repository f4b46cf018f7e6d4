"""Tiny encoders of three families and coloured images in memory, for tests that fine-tune by a strategy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom

from ssl_ft.artifact import InputContract
from ssl_ft.build.draft import Start
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.build.transfer import Trained, train_classifier
from ssl_ft.config import DataSettings, FinetuneSettings
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from tests.pools import source_of

SIDE = 32
SPECS = {
    "resnet": EncoderSpec("test_resnet", 3, SIDE),
    "convnext": EncoderSpec("test_convnext", 3, SIDE),
    "vit": EncoderSpec("test_vit", 3, SIDE),
}
CPU = torch.device("cpu")


def start_of(family: str) -> Start:
    """An encoder with random weights whose batch norms have seen images."""
    encoder = build_encoder(SPECS[family], seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in encoder.parameters():  # fresh, the last norm of each block is zero, and nothing before it would move
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        for _ in range(8):
            encoder.train()(torch.randn(16, 3, SIDE, SIDE, generator=generator))
    return Start(encoder.eval(), SPECS[family], InputContract(SIDE, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))


def images_of(folder: Path, *, count: int = 36, is_shuffled: bool = False, seed: int = 0) -> LabelledImages:
    """Images whose strongest colour is their class, of three, unless the labels are shuffled."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 3
    pixels = generator.integers(0, 120, (count, SIDE, SIDE, 3)).astype(np.uint8)
    pixels[np.arange(count), :, :, labels] += 60
    labels = generator.permutation(labels) if is_shuffled else labels
    source = source_of(list(pixels), labels=labels)
    return LabelledImages(source, DataSettings(path="memory", workers=1), np.arange(count), folder)


def memorable_images(folder: Path, *, count: int, seed: int = 0) -> LabelledImages:
    """Coarse coloured squares, none like another, under labels of three that have nothing to do with them."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    source = source_of(list(pixels), labels=generator.permutation(np.arange(count, dtype=np.int64) % 3))
    return LabelledImages(source, DataSettings(path="memory", workers=1), np.arange(count), folder)


def chance(count: int, *, looks: int = 1) -> tuple[float, float]:
    """Accuracies on `count` images of three classes that guesses leave once in 1000 times, the best of `looks`."""
    least, most = binom.ppf([5e-4, 1 - 5e-4 / looks], count, 1 / 3)
    return float(least) / count, float(most) / count


def split_of(train: int, val: int, test: int = 0) -> LabelSplit:
    """The first images to train on, then val, then test."""
    ends = np.cumsum([train, val, test])
    return LabelSplit(*(np.arange(end - size, end) for end, size in zip(ends, (train, val, test), strict=True)))


def settings_of(strategy: str, **more: Any) -> FinetuneSettings:
    """Six steps of 8 images."""
    tree = {"strategy": strategy, "min_steps": 6, "epochs": 1, "batch_size": 8, "patience": 100, **more}
    return FinetuneSettings.model_validate(tree)


def train(settings: FinetuneSettings, start: Start, images: LabelledImages, split: LabelSplit, **more: Any) -> Trained:
    """As the stage trains, on the CPU."""
    return train_classifier(settings, start, images, split, device=CPU, **more)
