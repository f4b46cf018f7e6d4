"""Supervised pretraining: the formula with gradients, labels by the images' numbers, nothing of them saved."""

import math

import pytest
import torch
from torch import nn

from ssl_ft.data.batches import Batch
from ssl_ft.objectives.classified import Classified
from ssl_ft.objectives.cross_entropy import mean_cross_entropy
from tests.pools import batch_of, view_maker
from tests.references.losses import cross_entropy_by_loops

CLASSES = 5
LABELS = torch.randint(0, CLASSES, (60,), generator=torch.Generator().manual_seed(0))


def objective_with() -> Classified:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.Tanh())
    return Classified(encoder, nn.Linear(8, CLASSES), LABELS, views=view_maker(6)).double()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (6, 3), (9, 1)])
def test_cross_entropy_and_gradient_equal_the_reference(seed, rows, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, classes, (rows,), generator=generator)
    ours, slow = mean_cross_entropy(logits, targets), cross_entropy_by_loops(logits, targets)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(ours, logits), torch.autograd.grad(slow, logits), rtol=1e-9, atol=1e-9
    )


def test_half_precision_logits_are_raised_before_the_softmax():
    logits = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = mean_cross_entropy(logits, LABELS[:7])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), cross_entropy_by_loops(logits.double(), LABELS[:7]), rtol=1e-6, atol=0)


def test_the_loss_is_that_of_the_head_on_the_features_with_the_images_own_labels():
    objective, batch = objective_with(), batch_of(7)
    parts = objective(batch)
    logits = objective.head(objective.encoder(objective.views(batch, view=0)))
    targets = LABELS[batch.indices_B]
    torch.testing.assert_close(parts.total, cross_entropy_by_loops(logits, targets), rtol=1e-9, atol=1e-9)
    assert parts.parts["cross_entropy"] == parts.total
    assert parts.parts["train_accuracy"] == (logits.argmax(1) == targets).double().mean()
    assert not any(part.requires_grad for part in parts.parts.values())


def test_labels_follow_the_images_wherever_they_stand_in_the_batch():
    objective, batch = objective_with(), batch_of(7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    mixed = Batch(batch.images_BCSS[order], batch.aspects_B[order], batch.indices_B[order], batch.epoch)
    torch.testing.assert_close(objective(mixed).total, objective(batch).total, rtol=1e-12, atol=1e-12)


def test_a_head_that_knows_nothing_pays_the_log_of_the_number_of_classes():
    objective = objective_with()
    nn.init.zeros_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    assert objective(batch_of(6)).total.item() == pytest.approx(math.log(CLASSES), rel=1e-12)


def test_every_parameter_is_trained_and_labels_are_no_part_of_what_is_saved():
    objective = objective_with()
    objective(batch_of(8)).total.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any("labels" in name for name in objective.state_dict())
