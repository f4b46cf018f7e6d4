"""Parameter groups and optimizers against updates worked out by hand."""

import pytest
import torch
from torch import nn

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
