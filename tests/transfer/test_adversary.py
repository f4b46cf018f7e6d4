"""Domain-adversarial training: the reversal and its schedule, and which way the gradients go."""

import math

import pytest
import torch

from ssl_ft.transfer.adversary import Critic, domain_loss, reversal_strength, reversed_gradient


def test_the_reversal_is_the_identity_whose_gradient_is_turned_round():
    features = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = reversed_gradient(features, strength=0.7)
    assert torch.equal(out, features)
    (own,) = torch.autograd.grad((out.sin() * 3).sum(), features)
    torch.testing.assert_close(own, -0.7 * 3 * features.cos())


def test_the_schedule_is_the_published_one():
    assert reversal_strength(0.0) == 0.0
    assert reversal_strength(0.5) == pytest.approx((1 - math.exp(-5)) / (1 + math.exp(-5)))
    assert reversal_strength(1.0) == pytest.approx(math.tanh(5))


def test_critic_and_encoder_pull_in_opposite_directions():
    """The critic's gradient is that of the plain loss; the features' is that, times −λ."""
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 4))
    torch.manual_seed(0)
    critic = Critic(5).double()
    # By hand: the mean over each side of −log of the share that the critic gives the truth.
    plain = (torch.log1p(critic(source).exp()).mean() + torch.log1p((-critic(target)).exp()).mean()) / 2
    ours = domain_loss(critic, source, target, strength=0.3)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    weights = list(critic.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(ours, [*weights, source, target]),
        torch.autograd.grad(plain, [*weights, source, target]),
        strict=True,
    ):
        sign = -0.3 if mine.shape in (source.shape, target.shape) else 1.0
        torch.testing.assert_close(mine, sign * theirs, rtol=1e-4, atol=1e-7)
