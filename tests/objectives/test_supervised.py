"""Cross-entropy on labelled images: the formula, labels by the images' numbers, float32 under mixed precision."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ft.data.batches import Batch
from ssl_ft.objectives.supervised import Supervised
from tests.pools import batch_of, view_maker

CLASSES = 5
LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, 60))


def objective_with(*, smoothing: float, dtype: torch.dtype = torch.float64) -> Supervised:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, CLASSES)).to(dtype)
    return Supervised(model, LABELS, views=view_maker(6, dtype=dtype), label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_mean_cross_entropy_of_smoothed_labels(smoothing):
    objective, batch = objective_with(smoothing=smoothing), batch_of(7)
    parts = objective(batch)
    logits = objective.encoder(objective.views(batch, view=0)).detach().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.full((7, CLASSES), smoothing / CLASSES)
    targets[np.arange(7), LABELS[batch.indices_B].numpy()] += 1 - smoothing
    assert parts.total.item() == pytest.approx(-(targets * log_shares).sum(1).mean(), rel=1e-12)
    assert parts.parts["cross_entropy"] == parts.total
    assert not parts.parts["cross_entropy"].requires_grad


def test_labels_follow_the_images_wherever_they_stand_in_the_batch():
    objective, batch = objective_with(smoothing=0.0), batch_of(7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    mixed = Batch(batch.images_BCSS[order], batch.aspects_B[order], batch.indices_B[order], batch.epoch)
    torch.testing.assert_close(objective(mixed).total, objective(batch).total, rtol=1e-12, atol=1e-12)


def test_half_precision_logits_are_raised_before_the_softmax():
    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :CLASSES].to(torch.bfloat16)

    objective = Supervised(Half(), LABELS, views=view_maker(6, dtype=torch.float32), label_smoothing=0.0)
    batch = batch_of(7)
    logits = Half()(objective.views(batch, view=0)).double()
    exact = nn.functional.cross_entropy(logits, LABELS[batch.indices_B])
    total = objective(batch).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)


def test_labels_are_no_part_of_what_is_saved():
    assert not any("labels" in name for name in objective_with(smoothing=0.0).state_dict())
