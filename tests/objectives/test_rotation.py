"""Rotation: the loss is the paper's over all four turns of each view, turns are exact, and nothing else leaks in."""

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_ft.objectives.rotation import Rotation, turns
from tests.pools import batch_of, view_maker
from tests.references.losses import rotation_by_loops

SIZE = 5


def objective_with(*, dtype: torch.dtype = torch.float64) -> Rotation:
    torch.manual_seed(0)
    return Rotation(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4), views=view_maker(SIZE, dtype=dtype)).to(dtype)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_loss_and_gradient_are_the_papers(count):
    objective, batch = objective_with(), batch_of(count)
    parts = objective(batch)
    views = objective.views(batch, view=0)
    expected = rotation_by_loops(views, objective.head.weight, objective.head.bias)
    torch.testing.assert_close(parts.total, expected, rtol=1e-9, atol=1e-9)
    for ours, slow in zip(
        torch.autograd.grad(parts.total, objective.head.parameters()),
        torch.autograd.grad(expected, objective.head.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
    assert parts.parts["rotation"] == parts.total
    assert not parts.parts["rotation"].requires_grad
    assert parts.terms == {}


def test_the_gradient_reaches_the_pixels_as_the_papers_does():
    torch.manual_seed(1)
    head = nn.Linear(3 * SIZE * SIZE, 4).double()
    views = torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    objective = Rotation(nn.Flatten(), head, views=lambda batch, view: views)
    ours = torch.autograd.grad(objective(batch_of(3)).total, views)
    slow = torch.autograd.grad(rotation_by_loops(views, head.weight, head.bias), views)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)


def test_a_head_that_knows_nothing_pays_log_four_and_hits_a_quarter():
    objective = objective_with()
    nn.init.zeros_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    parts = objective(batch_of(6))
    assert parts.total.item() == pytest.approx(math.log(4), rel=1e-12)
    assert parts.parts["rotation_accuracy"] == 0.25


def test_turns_are_exact_and_come_in_order():
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    four = turns(images)
    assert torch.equal(four[:2], images)
    for turn in range(1, 4):
        before, after = four[2 * turn - 2 : 2 * turn], four[2 * turn : 2 * turn + 2]
        # A quarter against the clock: what was the last column is the first row.
        assert torch.equal(after[:, :, 0, :], before[:, :, :, -1])
        assert torch.equal(after.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    assert torch.equal(turns(four[6:])[2:4], images)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_turns_keep_the_memory_layout(layout):
    images = torch.rand(2, 3, SIZE, SIZE).contiguous(memory_format=layout)
    assert turns(images).is_contiguous(memory_format=layout)


def test_all_turns_pass_the_encoder_at_once():
    class Counting(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    sizes: list[int] = []
    objective = objective_with()
    objective.encoder = Counting()
    objective(batch_of(6))
    assert sizes == [24]
