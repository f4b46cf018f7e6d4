"""Objectives on targets and on mixed or weighted classes: they are the pure losses on what the images' numbers name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_ft.data.batches import Batch
from ssl_ft.objectives.mixing import Mixing, mix
from ssl_ft.objectives.supervised import Supervised
from ssl_ft.objectives.target_losses import masked_squared_error, soft_cross_entropy
from ssl_ft.objectives.targeted import Targeted
from tests.pools import batch_of, view_maker

CLASSES, POOL = 4, 60
LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, POOL))
TARGETS = torch.from_numpy(np.random.default_rng(1).normal(size=(POOL, CLASSES)))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, CLASSES)).double()


def targeted(mixing: Mixing | None = None, penalty=None) -> Targeted:
    views = view_maker(6)
    return Targeted(
        model(), TARGETS, views=views, loss=masked_squared_error, name="error", mixing=mixing, penalty=penalty
    )


def test_the_loss_is_that_of_the_images_targets():
    objective, batch = targeted(), batch_of(7)
    parts = objective(batch)
    outputs = objective.encoder(objective.views(batch, view=0))
    torch.testing.assert_close(parts.total, (outputs - TARGETS[batch.indices_B]).square().mean())
    assert parts.parts["error"] == parts.total


def test_a_repeat_has_the_targets_of_its_image_and_another_view():
    objective, batch = targeted(), batch_of(7)
    again = Batch(batch.images_BCSS, batch.aspects_B, batch.indices_B + POOL, batch.epoch)
    views = objective.views(again, view=0)
    assert not torch.equal(views, objective.views(batch, view=0))
    expected = (objective.encoder(views) - TARGETS[batch.indices_B]).square().mean()
    torch.testing.assert_close(objective(again).total, expected)
    classes = Supervised(model(), LABELS, views=view_maker(6), label_smoothing=0.0)
    logits = classes.encoder(classes.views(again, view=0))
    torch.testing.assert_close(classes(again).total, F.cross_entropy(logits, LABELS[batch.indices_B]))


def test_views_and_targets_are_mixed_before_the_model_and_the_penalty_sees_them():
    seen = []

    def penalty(views):
        seen.append(views)
        return {"extra": views.sum() * 0 + 2.0}

    objective, batch = targeted(Mixing(0.5, 1.0, 3), penalty), batch_of(7)
    parts = objective(batch)
    views, targets = mix(
        objective.views(batch, view=0), TARGETS[batch.indices_B], batch.indices_B, mixing=Mixing(0.5, 1.0, 3), epoch=0
    )
    assert torch.equal(seen[0], views)
    torch.testing.assert_close(parts.parts["error"], (objective.encoder(views) - targets).square().mean())
    torch.testing.assert_close(parts.total, parts.parts["error"] + 2)


@pytest.mark.parametrize("mixing", [None, Mixing(0.4, 0.0, 1)])
def test_weighted_and_mixed_classes(mixing):
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    objective = Supervised(
        model(), LABELS, views=view_maker(6), label_smoothing=0.1, class_weights_K=weights, mixing=mixing
    )
    batch = batch_of(7)
    views, shares = objective.views(batch, view=0), F.one_hot(LABELS[batch.indices_B], CLASSES).double()
    if mixing is not None:
        views, shares = mix(views, shares, batch.indices_B, mixing=mixing, epoch=0)
    expected = soft_cross_entropy(objective.encoder(views), shares, label_smoothing=0.1, class_weights_K=weights)
    torch.testing.assert_close(objective(batch).total, expected)


def test_with_weights_of_one_the_loss_is_plain_cross_entropy():
    plain = Supervised(model(), LABELS, views=view_maker(6), label_smoothing=0.2)
    ones = torch.ones(CLASSES, dtype=torch.float64)
    weighted = Supervised(model(), LABELS, views=view_maker(6), label_smoothing=0.2, class_weights_K=ones)
    batch = batch_of(9)
    torch.testing.assert_close(weighted(batch).total, plain(batch).total)


def test_under_mixed_precision_the_loss_is_float32():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, CLASSES))
    objective = Targeted(
        network, TARGETS.float(), views=view_maker(6, dtype=torch.float32), loss=masked_squared_error, name="error"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective(batch_of(5)).total.dtype == torch.float32
