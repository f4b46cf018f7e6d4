"""Parameter groups and optimizers against updates worked out by hand."""

import pytest
import torch
from torch import nn

from ssl_ft.muon import orthogonalised
from ssl_ft.optim import build_optimizer, parameter_groups, set_rate


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def test_vectors_and_tokens_do_not_decay():
    model = Tokens()
    decayed, exempt = parameter_groups([(model, 1.0)], weight_decay=0.3)
    assert decayed["weight_decay"] == 0.3
    assert [p.shape for p in decayed["params"]] == [(4, 4)]
    assert exempt["weight_decay"] == 0.0
    assert len(exempt["params"]) == 4


def test_frozen_parameters_are_left_out():
    model = Tokens()
    model.linear.requires_grad_(False)
    groups = parameter_groups([(model, 1.0)], weight_decay=0.3)
    assert sum(len(g["params"]) for g in groups) == 3


def one_step(name: str, *, weight_decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(1.0)
    groups = parameter_groups([(model, 0.5)], weight_decay=weight_decay)
    optimizer = build_optimizer(name, groups, rate=1.0, momentum=0.9, betas=(0.9, 0.999))
    set_rate(optimizer, 0.1)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 0.4).double(), torch.full((2,), 0.4).double()
    optimizer.step()
    return model.weight.detach(), model.bias.detach()


def test_sgd_first_step_by_hand():
    weight, bias = one_step("sgd", weight_decay=0.01)
    # Nesterov's first step moves by rate · (1 + momentum) · gradient; rate is 0.1 times the group's 0.5.
    assert weight[0, 0].item() == pytest.approx(2.0 - 0.05 * 1.9 * (0.4 + 0.01 * 2.0))
    assert bias[0].item() == pytest.approx(1.0 - 0.05 * 1.9 * 0.4)


def test_adamw_first_step_by_hand():
    weight, bias = one_step("adamw", weight_decay=0.01)
    assert weight[0, 0].item() == pytest.approx(2.0 * (1 - 0.05 * 0.01) - 0.05, abs=1e-6)
    assert bias[0].item() == pytest.approx(1.0 - 0.05, abs=1e-6)


def test_lars_adapts_matrices_and_leaves_biases_alone():
    weight, bias = one_step("lars", weight_decay=0.01)
    norm, gradient_norm = 2.0 * 6**0.5, 0.4 * 6**0.5
    trust = 0.001 * norm / (gradient_norm + 0.01 * norm)
    assert weight[0, 0].item() == pytest.approx(2.0 - 0.05 * trust * (0.4 + 0.01 * 2.0), rel=1e-6)
    assert bias[0].item() == pytest.approx(1.0 - 0.05 * 0.4)


def test_lars_without_weight_decay_adapts_matrices_alone_too():
    weight, bias = one_step("lars", weight_decay=0.0)
    trust = 0.001 * 2.0 / 0.4
    assert weight[0, 0].item() == pytest.approx(2.0 - 0.05 * trust * 0.4, rel=1e-6)
    assert bias[0].item() == pytest.approx(1.0 - 0.05 * 0.4)


def test_muon_moves_matrices_by_orthogonal_updates_and_biases_as_adamw():
    weight, bias = one_step("muon", weight_decay=0.01)
    # A constant gradient has one singular vector: its orthogonal form is constant with norm near 1.
    moved = 2.0 * (1 - 0.05 * 0.01) - weight
    assert torch.allclose(moved, moved[0, 0].expand(2, 3))
    assert 0.7 < (moved.norm() / (0.05 * 0.2 * 3**0.5)).item() < 1.2
    assert bias[0].item() == pytest.approx(1.0 - 0.05, abs=1e-6)


@pytest.mark.parametrize(("name", "plain"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_fused_kernels_take_the_steps_of_plain_ones_in_either_layout(name, plain):
    torch.manual_seed(0)
    weights = torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last)
    vectors = torch.randn(6)
    gradients = [(torch.randn(6, 5, 3, 3), torch.randn(6)) for _ in range(5)]
    found = []
    for is_plain in (False, True):
        model = nn.Conv2d(5, 6, 3)
        model.weight.data, model.bias.data = weights.clone(), vectors.clone()
        groups = parameter_groups([(model, 1.0)], weight_decay=0.1)
        optimizer = build_optimizer(name, groups, rate=0.01, momentum=0.9, betas=(0.9, 0.99))
        assert optimizer.defaults["fused"]
        if is_plain:
            how = {"betas": (0.9, 0.99)} if name == "adamw" else {"momentum": 0.9, "nesterov": True}
            optimizer = plain(groups, lr=0.01, fused=False, foreach=False, **how)
        for matrix, vector in gradients:
            # Autograd hands gradients over in the layout of their parameter.
            model.weight.grad, model.bias.grad = matrix.to(memory_format=torch.channels_last), vector
            optimizer.step()
        found.append((model.weight.detach(), model.bias.detach()))
    for fused, expected in zip(*found, strict=True):
        assert torch.allclose(fused, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (8, 8)])
def test_orthogonalised_keeps_singular_vectors(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalised(matrix) @ right.T
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9
    assert 0.5 < inside.diagonal().min() <= inside.diagonal().max() < 1.25


def test_orthogonalised_is_the_published_iteration():
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = matrix / torch.linalg.svdvals(matrix).pow(4).sum() ** 0.25
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    assert torch.allclose(orthogonalised(matrix), x, rtol=0, atol=1e-9)


def test_muon_uses_nesterov_momentum():
    model = nn.Linear(4, 4, bias=False).double()
    optimizer = build_optimizer(
        "muon", parameter_groups([(model, 1.0)], weight_decay=0.0), rate=0.1, momentum=0.9, betas=(0.9, 0.999)
    )
    gradients = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected, momentum = model.weight.detach().clone(), torch.zeros(4, 4).double()
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        expected -= 0.1 * 0.2 * 2 * orthogonalised(0.1 * gradient + 0.9 * momentum)
    assert torch.allclose(model.weight, expected, rtol=0, atol=1e-12)


def test_a_matrix_without_gradient_does_not_move():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert torch.isfinite(orthogonalised(torch.full((3, 5), 1e-38))).all()
