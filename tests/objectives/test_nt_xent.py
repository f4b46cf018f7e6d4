"""NT-Xent and DCL: against loops from the papers with gradients, closed forms, invariances, lightly, low precision."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssl_ft.objectives import nt_xent as module
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from tests.references.losses import dcl_by_loops, nt_xent_by_loops

PAIRS = [(nt_xent, nt_xent_by_loops), (dcl, dcl_by_loops)]


def embeddings(seed: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize(("loss", "reference"), PAIRS)
@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 4), (7, 5), (12, 16)])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_value_and_gradient_equal_the_paper(loss, reference, count, size, temperature):
    first, second = embeddings(count, count, size)
    ours, slow = loss(first, second, temperature=temperature), reference(first, second, temperature)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (first, second)), torch.autograd.grad(slow, (first, second)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("loss", "reference"), PAIRS)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("span", [0, 80])
def test_blocks_of_rows_change_nothing(loss, reference, rows, span, monkeypatch):
    """Span 0 takes the form for several ranks and cold temperatures, 80 the symmetric one."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(module, "_WIDEST_SPAN", span)
    first, second = embeddings(0, 5, 4)
    ours, slow = loss(first, second, temperature=0.3), reference(first, second, 0.3)
    gradients = torch.autograd.grad(ours, (first, second)), torch.autograd.grad(slow, (first, second))
    torch.testing.assert_close((ours, gradients[0]), (slow, gradients[1]), rtol=1e-9, atol=1e-9)


def test_one_image_has_loss_zero_in_nt_xent_and_is_refused_by_dcl():
    first, second = embeddings(0, 1, 4)
    assert nt_xent(first, second, temperature=0.5).item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="at least 2 images"):
        dcl(first, second, temperature=0.5)


@pytest.mark.parametrize("count", [2, 5, 33])
def test_identical_embeddings_give_the_log_of_the_number_of_candidates(count):
    same = torch.ones(count, 3, dtype=torch.float64)
    assert nt_xent(same, same, temperature=0.1).item() == pytest.approx(math.log(2 * count - 1), abs=1e-12)
    assert dcl(same, same, temperature=0.1).item() == pytest.approx(math.log(2 * count - 2), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [nt_xent, dcl])
def test_invariances(loss, seed):
    first, second = embeddings(seed, 6, 5)
    value = loss(first, second, temperature=0.2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    scales = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for other in (
        loss(second, first, temperature=0.2),
        loss(first[order], second[order], temperature=0.2),
        loss(first * scales, second, temperature=0.2),
    ):
        torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)


def test_equals_lightly():
    first, second = embeddings(3, 9, 8)
    torch.testing.assert_close(
        nt_xent(first, second, temperature=0.3), NTXentLoss(temperature=0.3)(first, second), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("loss", [nt_xent, dcl])
def test_autocast_does_not_reach_the_logits(loss):
    first, second = (x.detach().float() for x in embeddings(1, 16, 32))
    exact = loss(first, second, temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(first, second, temperature=0.05)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0)


def test_float32_stays_near_float64_at_a_low_temperature():
    first, second = embeddings(2, 64, 16)
    exact = nt_xent(first, second, temperature=0.02)
    torch.testing.assert_close(
        nt_xent(first.float(), second.float(), temperature=0.02).double(), exact, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("loss", [nt_xent, dcl])
def test_rows_weigh_as_their_gradient_says(loss, monkeypatch):
    """The symmetric form against the general one with unequal weights of the rows, which a mean never shows."""
    first, second = embeddings(6, 6, 5)
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "mean", lambda self: (self * weights).sum())
    mirrored = torch.autograd.grad(loss(first, second, temperature=0.3), (first, second))
    monkeypatch.setattr(module, "_WIDEST_SPAN", 0)
    general = torch.autograd.grad(loss(first, second, temperature=0.3), (first, second))
    torch.testing.assert_close(mirrored, general, rtol=1e-9, atol=1e-9)


def test_far_negatives_do_not_vanish_at_the_coldest_symmetric_temperature():
    first = torch.tensor([[1.0, 0.0], [-1.0, 1e-3]], requires_grad=True)
    exact = nt_xent(first.detach().double(), -first.detach().double(), temperature=0.0251)
    loss = nt_xent(first, -first, temperature=0.0251)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    loss.backward()
    assert torch.isfinite(first.grad).all()
