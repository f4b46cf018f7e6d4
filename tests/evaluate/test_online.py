"""Watching: kNN leaves each image out, no labels means no accuracy, batch norms get the statistics of whole images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.artifact import InputContract
from ssl_ft.evaluate.monitors import embedding_std, rank_me
from ssl_ft.evaluate.online import Watcher, recalibrated
from tests.pools import noise_images

CONTRACT = InputContract(6, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Normed(nn.Module):
    """Two batch norms, the second on what the first gives, and a dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.first, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)
        self.linear, self.second = nn.Linear(64, 5), nn.BatchNorm1d(5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(self.first(self.conv(images)).relu())
        features: Tensor = self.second(self.linear(hidden.flatten(1)))
        return features


def images(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(noise_images(count, side=6, seed=seed)).permute(0, 3, 1, 2).contiguous()


def watch(labels: Tensor | None, pixels: Tensor, *, k: int = 3) -> Watcher:
    return Watcher(pixels, labels, CONTRACT, num_neighbours=k, batch_size=16, dtype=torch.float32)


def test_recalibrated_statistics_are_those_of_whole_images_by_hand():
    encoder = Normed().double().train()
    for _ in range(3):  # statistics of something else, as a masked objective leaves them
        encoder(torch.randn(8, 3, 6, 6, dtype=torch.float64) * 5 + 2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pixels = images(20)
    ready = recalibrated(encoder, pixels, CONTRACT, batch_size=8)
    blocks = [CONTRACT.normalise(pixels[start : start + 8]).double() for start in (0, 8)]  # 4 left over
    means, variances, means2, variances2 = [], [], [], []
    for block in blocks:
        conv = encoder.conv(block)
        mean, variance = conv.mean((0, 2, 3)), conv.var((0, 2, 3), correction=0)
        means.append(mean)
        variances.append(conv.var((0, 2, 3), correction=1))
        shape = (1, -1, 1, 1)
        normed = (conv - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        affine = normed * encoder.first.weight.view(shape) + encoder.first.bias.view(shape)
        hidden = encoder.linear(affine.relu().flatten(1))  # no dropout
        means2.append(hidden.mean(0))
        variances2.append(hidden.var(0, correction=1))
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(ready.first.running_mean, torch.stack(means).mean(0), **close)
    torch.testing.assert_close(ready.first.running_var, torch.stack(variances).mean(0), **close)
    torch.testing.assert_close(ready.second.running_mean, torch.stack(means2).mean(0), **close)
    torch.testing.assert_close(ready.second.running_var, torch.stack(variances2).mean(0), **close)
    assert ready.first.momentum == 0.3
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(part.training for part in ready.modules())


def test_recalibration_draws_nothing_at_random_and_needs_no_batch_norm():
    torch.manual_seed(1)
    first = recalibrated(Normed(), images(10), CONTRACT, batch_size=4).state_dict()
    torch.manual_seed(2)
    second = recalibrated(Normed(), images(10), CONTRACT, batch_size=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = nn.Linear(3, 2)
    assert torch.equal(recalibrated(plain, images(4), CONTRACT, batch_size=4).weight, plain.weight)


def test_fewer_images_than_a_batch_are_all_used():
    ready = recalibrated(Normed().double(), images(5), CONTRACT, batch_size=64)
    conv = ready.conv(CONTRACT.normalise(images(5)).double())
    torch.testing.assert_close(ready.first.running_mean, conv.mean((0, 2, 3)), rtol=1e-9, atol=1e-9)


def test_features_are_those_of_evaluation_and_the_mode_comes_back():
    encoder, pixels = Normed().train(), images(20)
    features = watch(None, pixels).features(encoder)
    assert encoder.training
    with torch.no_grad():
        expected = encoder.eval()(CONTRACT.normalise(pixels))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert watch(None, pixels).features(encoder).shape == (20, 5)
    assert not encoder.training


def test_without_labels_only_signs_of_collapse_are_measured():
    encoder, pixels = Normed(), images(20)
    for labels in (None, torch.full((20,), -1), torch.zeros(20, dtype=torch.int64)):
        watcher = watch(labels, pixels)
        row = watcher(encoder)
        assert set(row) == {"embedding_std", "rank_me"}
        assert watcher.num_labels == 0
    features = watch(None, pixels).features(encoder)
    assert row["embedding_std"] == pytest.approx(float(embedding_std(features)))
    assert row["rank_me"] == pytest.approx(float(rank_me(features)))


class Flat(nn.Module):
    """The pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_knn_leaves_each_image_out_of_its_own_vote():
    pixels = images(40)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 40))
    features = watch(labels, pixels).features(Flat()).double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    hits = 0
    for number in range(40):
        order = [n for n in np.argsort(-similar[number]) if n != number][:3]
        votes = np.zeros(2)
        for n in order:
            votes[labels[n]] += np.exp(similar[number, n] / 0.07)
        hits += votes.argmax() == labels[number].item()
    row = watch(labels, pixels)(Flat())
    assert row["knn_accuracy"] == pytest.approx(hits / 40)
    assert row["knn_accuracy"] < 0.8  # itself among its neighbours, each random label would be known


def test_unlabelled_images_have_no_part_in_the_accuracies():
    pixels = images(60)
    labels = torch.arange(60) % 2
    pixels[:, 0] = (labels * 200).to(torch.uint8).view(-1, 1, 1)  # the colour tells the class
    strange = torch.cat([pixels, images(30, seed=1)])
    row = watch(torch.cat([labels, torch.full((30,), -1)]), strange)(Flat())
    assert row["knn_accuracy"] == 1.0
    assert watch(torch.cat([labels, torch.full((30,), -1)]), strange).num_labels == 60


def test_the_probe_is_scored_on_images_it_was_not_fitted_on():
    pixels = images(80)
    chance = watch(torch.from_numpy(np.random.default_rng(1).integers(0, 2, 80)), pixels)(Flat())["probe_accuracy"]
    assert 0.2 < chance < 0.8  # 108 pixels tell 80 images apart: fitted on them it would be 1
    labels = torch.arange(80) // 2 % 2
    pixels[:, 0] = (labels * 200).to(torch.uint8).view(-1, 1, 1)
    assert watch(labels, pixels)(Flat())["probe_accuracy"] == 1.0
