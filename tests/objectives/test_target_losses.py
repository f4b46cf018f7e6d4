"""Losses on targets: equal to slow references with gradients, closed forms, missing values, weights of classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ft.objectives.target_losses import (
    class_weights,
    masked_binary_cross_entropy,
    masked_huber,
    masked_squared_error,
    soft_cross_entropy,
)
from tests.references.target_losses import (
    binary_cross_entropy_by_loops,
    cross_entropy_by_loops,
    huber_by_loops,
    squared_error_by_loops,
)

SIZES = [(1, 1), (1, 4), (5, 3), (6, 1)]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_holes(values: Tensor, seed: int) -> Tensor:
    draws = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draws < 0.3, torch.nan, values)


def assert_same(fast, slow, inputs: Tensor) -> None:
    """Values and gradients."""
    leaves = [inputs.clone().requires_grad_() for _ in range(2)]
    values = [function(leaf) for function, leaf in zip((fast, slow), leaves, strict=True)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-12)
    grads = [torch.autograd.grad(value, leaf, allow_unused=True)[0] for value, leaf in zip(values, leaves, strict=True)]
    expected = torch.zeros_like(inputs) if grads[1] is None else grads[1]
    torch.testing.assert_close(grads[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (5, 3), (4, 7)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_cross_entropy_of_shares(rows, classes, smoothing, is_weighted):
    logits, shares = normal(rows, classes, seed=0), normal(rows, classes, seed=1).softmax(1)
    weights = (1 + torch.arange(classes, dtype=torch.float64)) if is_weighted else None
    assert_same(
        lambda z: soft_cross_entropy(z, shares, label_smoothing=smoothing, class_weights_K=weights),
        lambda z: cross_entropy_by_loops(z, shares, smoothing, None if weights is None else weights.tolist()),
        logits,
    )


def test_of_one_hot_shares_it_is_torchs_cross_entropy():
    logits, labels = normal(8, 5, seed=0), torch.arange(8) % 5
    for smoothing in (0.0, 0.2):
        ours = soft_cross_entropy(logits, F.one_hot(labels, 5).double(), label_smoothing=smoothing)
        torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_halves_of_a_batch_add_up_with_weights_too():
    logits, shares = normal(8, 3, seed=0), F.one_hot(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), 3).double()
    weights = torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64)
    halves = [
        soft_cross_entropy(z, t, class_weights_K=weights) for z, t in zip(logits.split(4), shares.split(4), strict=True)
    ]
    whole = soft_cross_entropy(logits, shares, class_weights_K=weights)
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


@pytest.mark.parametrize(("rows", "labels"), SIZES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_binary_cross_entropy(rows, labels, smoothing, is_weighted):
    logits = normal(rows, labels, seed=2)
    targets = with_holes((normal(rows, labels, seed=3) > 0).double() * 0.8, seed=4)
    weights = torch.stack([torch.full((labels,), 0.7), 1 + torch.arange(labels)], 1).double() if is_weighted else None
    pairs = None if weights is None else [(a, b) for a, b in weights.tolist()]
    assert_same(
        lambda z: masked_binary_cross_entropy(z, targets, label_smoothing=smoothing, class_weights_K2=weights),
        lambda z: binary_cross_entropy_by_loops(z, targets, smoothing, pairs) + 0 * z.sum(),
        logits,
    )


@pytest.mark.parametrize(("rows", "targets"), SIZES)
@pytest.mark.parametrize("delta", [0.3, 1.0, 1e3])
def test_huber_and_squared_error(rows, targets, delta):
    predictions, truth = normal(rows, targets, seed=5), with_holes(normal(rows, targets, seed=6), seed=7)
    assert_same(
        lambda p: masked_huber(p, truth, delta=delta),
        lambda p: huber_by_loops(p, truth, delta) + 0 * p.sum(),
        predictions,
    )
    assert_same(
        lambda p: masked_squared_error(p, truth), lambda p: squared_error_by_loops(p, truth) + 0 * p.sum(), predictions
    )
    if delta == 1e3:  # no error is that large: half the square of each
        assert torch.allclose(
            masked_huber(predictions, truth, delta=delta), masked_squared_error(predictions, truth) / 2
        )


@pytest.mark.parametrize(
    "loss", [masked_binary_cross_entropy, masked_squared_error, lambda z, t: masked_huber(z, t, delta=1)]
)
def test_missing_values_take_no_part(loss):
    predictions, targets = normal(4, 3, seed=8).requires_grad_(), (normal(4, 3, seed=9) > 0).double()
    full = loss(predictions[:2], targets[:2])
    holes = torch.cat([targets[:2], torch.full((2, 3), torch.nan)])
    assert torch.equal(loss(predictions, holes), full)
    gradient = torch.autograd.grad(loss(predictions, holes), predictions)[0]
    assert gradient[2:].eq(0).all()
    assert gradient[:2].ne(0).all()
    nothing = loss(predictions, torch.full_like(targets, torch.nan))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, predictions)[0].eq(0).all()


def test_a_logit_far_out_stays_finite():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = masked_binary_cross_entropy(logits, torch.tensor([[0.0, 1.0]]))
    assert loss.item() == pytest.approx(1e4)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_class_weights_by_hand():
    counts = [90, 10]
    assert class_weights(counts, how="none", beta=0.9).tolist() == [1, 1]
    assert class_weights(counts, how="inverse", beta=0.9).tolist() == pytest.approx([100 / 180, 100 / 20])
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in counts]
    mean = (90 * raw[0] + 10 * raw[1]) / 100
    assert class_weights(counts, how="effective", beta=0.9).tolist() == pytest.approx([r / mean for r in raw])


@pytest.mark.parametrize("how", ["none", "inverse", "effective"])
def test_the_mean_weight_of_an_image_is_one_and_absent_classes_have_none(how):
    counts = torch.tensor([7, 0, 1, 500], dtype=torch.float64)
    weights = class_weights([7, 0, 1, 500], how=how, beta=0.99)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert how == "none" or weights[1] == 0
    assert torch.isfinite(weights).all()


def test_limits_of_the_effective_number():
    counts = [3, 40, 1000]
    even = class_weights(counts, how="effective", beta=0.0)
    assert even.tolist() == pytest.approx([1, 1, 1])
    nearly = class_weights(counts, how="effective", beta=1 - 1e-12)
    assert nearly.tolist() == pytest.approx(class_weights(counts, how="inverse", beta=0.0).tolist(), rel=1e-6)
    assert not math.isclose(class_weights(counts, how="effective", beta=0.99)[0], nearly[0], rel_tol=0.01)
