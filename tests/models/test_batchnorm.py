"""Global batch norm: on two ranks it equals torch's batch norm on the joined batch, values, gradients and buffers."""

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from ssl_ft import dist
from ssl_ft.models.batchnorm import GlobalBatchNorm, use_global_batch_norm
from tests.ranks import run_on_ranks

COUNT = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), BatchNormAct2d(4), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers, nn.BatchNorm1d(3, affine=False)).double()


def joined_batch() -> torch.Tensor:
    return torch.randn(COUNT, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def one_step() -> dict[str, np.ndarray]:
    """Output rows, averaged gradients and buffers of this rank's part of the batch."""
    model = network()
    model = use_global_batch_norm(model) if dist.world_size() > 1 else model
    share = COUNT // dist.world_size()
    rows = joined_batch()[dist.rank() * share : (dist.rank() + 1) * share]
    output = model(rows)
    (output.sin() * torch.arange(3.0)).sum(1).mean().backward()
    gradients = dist.average_gradients([p.grad for p in model.parameters()])
    buffers = {name: b.double().numpy() for name, b in model.named_buffers()}
    flat = torch.cat([g.flatten() for g in gradients])
    return {"output": output.detach().numpy(), "gradient": flat.numpy(), **buffers}


@pytest.mark.dist
def test_two_ranks_equal_one():
    alone = one_step()
    first, second = run_on_ranks(one_step, num_ranks=2)
    np.testing.assert_allclose(np.concatenate([first["output"], second["output"]]), alone["output"], atol=1e-9)
    for key in set(alone) - {"output"}:
        np.testing.assert_allclose(first[key], alone[key], atol=1e-9, err_msg=key)
        np.testing.assert_allclose(second[key], alone[key], atol=1e-9, err_msg=key)


def test_conversion_keeps_names_and_evaluation():
    model, converted = network().eval(), use_global_batch_norm(network()).eval()
    assert list(model.state_dict()) == list(converted.state_dict())
    assert sum(isinstance(m, GlobalBatchNorm) for m in converted.modules()) == 3
    assert torch.equal(model(joined_batch()), converted(joined_batch()))
