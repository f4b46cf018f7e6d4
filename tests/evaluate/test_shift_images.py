"""The measurement of a shift on real images: false alarms over splits of one set, alarms where there is a shift."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFilter

from ssl_ft.artifact import InputContract
from ssl_ft.evaluate.features import compute_outputs, pixel_features
from ssl_ft.evaluate.shift import Shift, image_statistics, measure, prepare
from ssl_ft.models.encoders import EncoderSpec, build_encoder

CONTRACT = InputContract(32, 3, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def read(folder: Path, count: int) -> np.ndarray:
    """The first images of a training split, uint8 [N, 32, 32, 3]."""
    column = pq.read_table(folder / "train.parquet", columns=["image"]).slice(0, count)["image"].to_pylist()
    raw = [cell if isinstance(cell, bytes) else cell["bytes"] for cell in column]
    return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB").resize((32, 32))) for each in raw])


def blurred(images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(1))) for i in images])


def spaces_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """What the stage compares, with an untrained encoder."""
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    encoder = build_encoder(EncoderSpec("test_resnet", 3, 32), seed=0)
    statistics = image_statistics(pixels)
    features = compute_outputs(encoder, pixels, CONTRACT, device=torch.device("cpu"), batch_size=256)
    return {
        "encoder": features,
        "pixels": pixel_features(pixels),
        "statistics": statistics / statistics.std(axis=0),
    }


@pytest.mark.slow
def test_halves_of_one_set_alarm_in_5_of_100_splits_at_most(shared_data):
    prepared = prepare(spaces_of(read(shared_data / "cifar10", 800)))
    generator = np.random.default_rng(0)
    alarms = 0
    for split in range(100):
        is_target = generator.permutation(800) < 400
        alarms += measure(prepared, is_target, num_permutations=399, seed=split).is_shifted
    assert alarms <= 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fashion_mnist", "blurred", "inverted"])
def test_another_set_and_spoilt_copies_alarm_always(shared_data, kind):
    photos = read(shared_data / "cifar10", 4000)
    if kind == "fashion_mnist":
        others = read(shared_data / "fashion_mnist", 2000)
    else:
        others = blurred(photos[2000:]) if kind == "blurred" else 255 - photos[2000:]
    spaces = spaces_of(np.concatenate([photos[:2000], others]))
    generator = np.random.default_rng(1)
    found: list[Shift] = []
    for draw in range(50):
        rows = np.concatenate([generator.permutation(2000)[:200], 2000 + generator.permutation(2000)[:200]])
        prepared = prepare({name: features[rows] for name, features in spaces.items()})
        found.append(measure(prepared, np.arange(400) >= 200, num_permutations=399, seed=draw))
    assert all(shift.is_shifted for shift in found)
    grades = {shift.grade for shift in found}
    assert grades == {"far"} if kind == "fashion_mnist" else "slight" not in grades
