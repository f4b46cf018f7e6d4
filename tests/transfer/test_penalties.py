"""L2-SP, feature distance and the solved head against slow references in float64, with gradients and closed forms."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ssl_ft.evaluate.probe import fit_linear
from ssl_ft.transfer.exact_head import bake_probe, feature_statistics
from ssl_ft.transfer.feature_distance import DistancePenalty, feature_distance
from ssl_ft.transfer.l2sp import l2sp, pull
from tests.references.losses import feature_distance_by_loops, l2sp_by_loops

SHAPES = ((3, 2, 2), (4,), (2, 5))


def tensors(seed: int, *, needs_gradient: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(needs_gradient) for shape in SHAPES
    ]


def test_l2sp_is_the_slow_sum_in_value_and_gradient():
    weights, again, source = tensors(0, needs_gradient=True), tensors(0, needs_gradient=True), tensors(1)
    value, reference = l2sp(weights, source, strength=0.7), l2sp_by_loops(again, source, 0.7)
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=0.0)
    value.backward()
    reference.backward()
    for one, other, s in zip(weights, again, source, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(one.grad, 0.7 * (one - s).detach(), rtol=1e-12, atol=0.0)


def test_the_pull_is_the_proximal_step_of_l2sp():
    """Where it ends, the penalty's gradient is what took the weights there: ∇l2sp(w) = (w₀ − w) / rate."""
    rate, strength = 0.3, 4.0
    before, weights, source = tensors(0), tensors(0), tensors(1)
    pull(weights, source, amount=rate * strength)
    for w in weights:
        w.requires_grad_()
    l2sp(weights, source, strength=strength).backward()
    for w, w0 in zip(weights, before, strict=True):
        torch.testing.assert_close(w.grad, ((w0 - w) / rate).detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("amount", "end"), [(0.0, 0), (float("inf"), 1)])
def test_the_pull_is_exact_at_both_ends(amount, end):
    weights = tensors(0)
    pull(weights, tensors(1), amount=amount)
    assert all(torch.equal(w, s) for w, s in zip(weights, tensors(end), strict=True))


def test_feature_distance_is_the_slow_ratio_in_value_and_gradient():
    generator = torch.Generator().manual_seed(2)
    f, s = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    first, second, source = f.clone().requires_grad_(), f.clone().requires_grad_(), s.clone().requires_grad_()
    value, reference = feature_distance(first, source), feature_distance_by_loops(second, s)
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=0.0)
    value.backward()
    reference.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-12, atol=0.0)
    assert source.grad is None


def test_feature_distance_has_no_unit_and_bears_features_of_zero():
    f, s = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(feature_distance(f, s), feature_distance(1000 * f, 1000 * s))
    assert feature_distance(torch.zeros_like(s), s) == 1
    assert feature_distance(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert feature_distance(f.bfloat16(), s.bfloat16()).dtype == torch.float32


def test_the_solved_head_gives_the_probes_probabilities_for_classes_with_labels_and_none_for_others():
    generator = np.random.default_rng(0)
    features = (generator.normal(size=(30, 6)) * [1, 10, 0.1, 1, 1, 1] + 3).astype(np.float32)
    labels = np.arange(30) % 3 * 2  # classes 1 and 3 have none
    known = feature_statistics(features)
    probe = fit_linear(features, labels, strength=0.01, num_classes=5, mean=known.mean, scale=known.scale)
    head = nn.Linear(6, 5)
    bake_probe(head, probe)
    logits = head(torch.from_numpy(features))
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), probe.predict_proba(features), atol=1e-5)
    assert torch.isfinite(logits).all()
    assert (logits.softmax(1)[:, [1, 3]] == 0).all()


def test_unlabelled_images_leave_no_trace_in_batch_norms():
    model = timm.create_model("test_resnet", num_classes=3).train()
    source = timm.create_model("test_resnet", num_classes=0).eval()
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    penalty = DistancePenalty(model, source, weight=1.0, more=lambda: views + 10)
    model(views)
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    assert penalty(views)["unlabelled_distance"] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before)
