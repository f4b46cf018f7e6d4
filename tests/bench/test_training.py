"""The training rows: our steps go on through the pool, counted operations are right, and lightly's recipe trains."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_ft.bench import peers, training, workload
from ssl_ft.bench.pools import images_of, open_pool, smooth_noise
from ssl_ft.bench.workload import build_training, end_to_end, flops_per_image, matrix_product, model_steps
from ssl_ft.config import PretrainSettings

SMALL = {"rounds": 1, "workers": 0, "batch_size": 8, "num_steps": 1, "matrix_side": 32, "encoder": "test_resnet"}


@pytest.fixture(scope="module")
def pool():
    return open_pool(None, size=32, count=32)


def tiny_training(pool):
    settings = PretrainSettings(encoder="test_resnet", size=32, batch_size=8)
    return build_training(settings, pool, torch.device("cpu"))


def test_rows(pool):
    ours, *same_precision, share, whole = training.measure(pool, **SMALL)
    assert "times lightly's recipe in float32" in ours.name
    assert [row.bar.value for row in (ours, share, whole)] == [2.0, 0.85, 0.95]
    assert all(row.bar is None for row in same_precision)
    assert ours.ratio == pytest.approx(ours.ours / ours.peer)
    assert [row.unit for row in (ours, share, whole)] == ["images/s", "GFLOP/s", "images/s"]
    assert ours.ours == whole.ours


def test_without_lightly_ours_is_measured_all_the_same(pool, monkeypatch):
    hidden = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(peers, "importlib", hidden)
    ours, share, whole = training.measure(pool, **SMALL)
    assert (ours.peer, ours.is_met) == (None, None)
    assert "lightly" in ours.note
    assert min(ours.ours, share.ratio, whole.ratio) > 0


def test_blocks_go_on_where_the_last_one_ended(pool, monkeypatch):
    seen = []
    real = workload.run_steps

    def watch(*words, start_step, **options):
        done = real(*words, start_step=start_step, **options)
        seen.append((start_step, done))
        return done

    monkeypatch.setattr(workload, "run_steps", watch)
    block = end_to_end(tiny_training(pool), num_steps=2)
    block()
    block()
    assert seen == [(0, 2), (2, 4)]


def test_bare_steps_move_the_weights(pool):
    work = tiny_training(pool)
    before = [p.detach().clone() for p in work.objective.parameters()]
    model_steps(work, num_steps=1)()
    assert any(not torch.equal(a, b) for a, b in zip(before, work.objective.parameters(), strict=True))


def test_operations_are_counted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    # Forward and the weight's gradient; the input needs none.
    assert flops_per_image(model, torch.ones(6, 3, 2, 2)) == 2 * (2 * 12 * 5)
    assert matrix_product(8, torch.float32, torch.device("cpu"), repeats=3)[1] == 3 * 2 * 8**3


def test_the_recipe_trains_on_all_of_an_epoch():
    images = smooth_noise(12, height=32, width=32)
    dataset = peers.ArrayImages(images, peers.simclr_transform(32))
    (first, second), _ = dataset[0]
    assert first.shape == second.shape == (3, 32, 32)
    assert not torch.equal(first, second)
    model = peers.LightlySimCLR().eval()
    # Stem of stride 1 and no pooling: the last map of 32 pixels has 4 x 4 cells, not 1.
    assert model.backbone[:-1](first[None]).shape == (1, 512, 4, 4)
    assert model(first[None]).shape == (1, 128)


def test_noise_is_a_pool_like_others(pool):
    images = images_of(pool)
    assert images.shape == (32, 32, 32, 3)
    np.testing.assert_array_equal(images, smooth_noise(32, height=32, width=32))


def test_the_users_own_images(tmp_path):
    np.save(tmp_path / "own.npy", smooth_noise(20, height=40, width=40, seed=1))
    store = open_pool(str(tmp_path / "own.npy"), size=32, count=12)
    assert len(store) == 12
    assert store.is_decoded
