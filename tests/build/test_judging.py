"""What a judgement embeds: of a large training part no more than its draws and what standardises; damage among them."""

import numpy as np
import pytest
import torch

from ssl_ft.artifact import InputContract, ModelCard, save_model
from ssl_ft.build import judging
from ssl_ft.build.judging import feature_sets, needed_images
from ssl_ft.build.origins import own_origin
from ssl_ft.config import DataSettings
from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.evaluate import judge
from ssl_ft.evaluate.features import FeatureSet, read_inputs
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.runlog import RunFolder
from tests.pools import noise_images, source_of

CONTRACT = InputContract(8, 3, (0.5,) * 3, (0.2,) * 3)
DATA = DataSettings(workers=1)
LABELS = np.arange(80, dtype=np.int64) % 2
ROLES = Roles(train=np.arange(60), val=np.empty(0, np.int64), test=np.arange(60, 80))
BUDGETS = {"budgets": (2, 5), "draws": 2, "seed": 0}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images standardise."""
    monkeypatch.setattr(judge, "MOST_STANDARDISING", 10)
    monkeypatch.setattr(judging, "MOST_STANDARDISING", 10)


def test_small_training_parts_and_all_labels_need_every_image(few):
    source = source_of(list(noise_images(80, side=8)), labels=LABELS)
    needed = needed_images(source, ROLES, DATA, CONTRACT, budgets=(2, "all"), draws=2, seed=0)
    assert needed.roles is ROLES
    assert needed.drawn is None
    small = Roles(train=ROLES.train[:10], val=ROLES.val, test=ROLES.test)
    assert needed_images(source, small, DATA, CONTRACT, **BUDGETS).roles is small


def test_draws_that_meet_damaged_images_go_on_to_the_next_of_their_class(few):
    images: list[np.ndarray | bytes] = list(noise_images(80, side=8))
    drawn = label_budget(LABELS, ROLES.train, per_class=2, draw=0, seed=0)
    bad = [int(drawn[0]), int(drawn[2])]
    for index in bad:
        images[index] = b"no image"
    needed = needed_images(source_of(images, labels=LABELS), ROLES, DATA, CONTRACT, **BUDGETS)
    assert needed.drawn is not None
    for budget, taken in zip((2, 5), needed.drawn.taken, strict=True):
        for draw, chosen in enumerate(taken):
            expected = label_budget(LABELS, ROLES.train, per_class=budget, draw=draw, seed=0, damaged=np.array(bad))
            assert np.array_equal(chosen, expected)
    assert len(needed.roles.train) < 40
    assert set(bad) <= set(needed.roles.train), "they are read again to be listed"
    wanted = np.concatenate([needed.roles.train, needed.roles.test])
    source = source_of(images, labels=LABELS)
    inputs = read_inputs(source, wanted, CONTRACT, max_damaged_share=1, max_pixels=10**6, workers=1)
    places = needed.places(inputs.indices)
    assert places is not None
    for taken, there in zip(needed.drawn.taken, places.taken, strict=True):
        for chosen, place in zip(taken, there, strict=True):
            assert np.array_equal(inputs.indices[place], chosen)
    kept = np.setdiff1d(needed.drawn.standardising, bad)
    assert np.array_equal(inputs.indices[places.standardising], kept)


def test_features_of_many_blocks_are_those_of_one_to_the_bit(tmp_path, monkeypatch):
    images: list[np.ndarray | bytes] = list(noise_images(80, side=8))
    images[5] = images[33] = b"no image"
    spec = EncoderSpec("test_resnet", 3, 8)
    save_model(tmp_path / "encoder", build_encoder(spec, seed=1), ModelCard("encoder", spec, CONTRACT))

    def sets(out: str) -> list[FeatureSet]:
        run = RunFolder(tmp_path / out, stage="probe", settings={})
        with run:
            return feature_sets(
                own_origin(tmp_path / "encoder"), source_of(images, labels=LABELS), ROLES,
                DataSettings(workers=1, max_damaged_share=0.1), run=run, device=torch.device("cpu"), batch_size=7,
                has_baselines=True, seed=0,
            )  # fmt: skip

    whole = sets("whole")
    sizes = []
    monkeypatch.setattr(judging, "_BLOCK_BYTES", 3 * 8 * 8 * 14)
    compute = judging.compute_outputs
    monkeypatch.setattr(
        judging, "compute_outputs", lambda *given, **more: sizes.append(len(given[1])) or compute(*given, **more)
    )
    parts = sets("parts")
    assert max(sizes) == 14
    assert [one.model for one in parts] == ["encoder", "untrained", "pixels"]
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.features, other.features)
        assert np.array_equal(one.labels, LABELS[one.indices])
        assert np.array_equal(one.indices, other.indices)
        assert np.array_equal(one.indices[one.roles.test], ROLES.test)
    assert (tmp_path / "whole/damaged.csv").read_bytes() == (tmp_path / "parts/damaged.csv").read_bytes()
