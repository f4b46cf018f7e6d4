"""Standardised targets and the head that gives them back in the user's units; how each task judges val."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score
from torch import nn

from ssl_ft.transfer.finetune import judge_labels, judge_numbers
from ssl_ft.transfer.number_head import fold_scale, number_scale

TARGETS = np.array([[5000.0, 1.0], [5100.0, np.nan], [5300.0, 4.0]], np.float32)


def test_targets_have_mean_zero_and_spread_one_and_holes_stay():
    scale = number_scale(TARGETS)
    standard = scale.standardise(TARGETS)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(np.nanmean(standard, axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.nanstd(standard, axis=0), 1, rtol=1e-6)
    assert np.isnan(standard).tolist() == np.isnan(TARGETS).tolist()


def test_a_single_value_is_not_divided_by_its_spread():
    scale = number_scale(np.array([[7.0], [7.0]], np.float32))
    assert (scale.mean.tolist(), scale.spread.tolist()) == ([7.0], [1.0])


def test_the_folded_head_speaks_the_users_units():
    torch.manual_seed(0)
    head, scale = nn.Linear(6, 2), number_scale(TARGETS)
    features = torch.randn(9, 6)
    expected = head(features).detach().double().numpy() * scale.spread + scale.mean
    fold_scale(head, scale)
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-5)


def test_labels_are_judged_by_average_precision_and_cross_entropy():
    generator = np.random.default_rng(0)
    targets = (generator.random((30, 3)) < 0.4).astype(np.float32)
    logits = (2 * targets - 1 + generator.normal(size=targets.shape)).astype(np.float32)
    score, loss = judge_labels(logits, targets)
    assert score == pytest.approx(average_precision_score(targets, logits))
    shares = 1 / (1 + np.exp(-logits.astype(float)))
    assert loss == pytest.approx(-np.mean(np.log(np.where(targets == 1, shares, 1 - shares))), rel=1e-5)
    assert judge_labels(logits, np.zeros_like(targets))[0] == 0.0


def test_numbers_are_judged_by_r2_and_squared_error():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(30, 2)).astype(np.float32)
    outputs = (targets + generator.normal(size=targets.shape)).astype(np.float32)
    score, loss = judge_numbers(outputs, targets)
    assert score == pytest.approx(r2_score(targets, outputs))
    assert loss == pytest.approx(np.mean((targets - outputs) ** 2), rel=1e-5)
    # Of one image R² says nothing: less error is better.
    near, far = (judge_numbers(targets[:1] + error, targets[:1])[0] for error in (np.float32(0.1), np.float32(0.5)))
    assert far < near < 0
