"""Collectives with gradients, and contrastive losses over ranks: two gloo processes give what one process gives."""

import os
import socket
from typing import Any

import numpy as np
import pytest
import torch

from ssl_ft import dist
from ssl_ft.objectives.nt_xent import dcl, nt_xent
from tests.ranks import run_on_ranks

IMAGES, SIZE = 8, 5
LOSSES = {"nt_xent": nt_xent, "dcl": dcl}


def joined() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [2, N, D] of the whole batch and a shared linear map, float64."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, IMAGES, SIZE, generator=generator, dtype=torch.float64)
    return views, torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)


def contrast_of_this_rank(name: str) -> dict[str, Any]:
    """Loss averaged over ranks, averaged gradient of the map and gradient of this rank's own rows."""
    views, start = joined()
    share = IMAGES // dist.world_size()
    own = views[:, dist.rank() * share : (dist.rank() + 1) * share].clone().requires_grad_()
    weight = start.clone().requires_grad_()
    first, second = own @ weight
    loss = LOSSES[name](first, second, temperature=0.2)
    loss.backward()
    assert weight.grad is not None
    assert own.grad is not None
    (gradient,) = dist.average_gradients([weight.grad])
    mean = dist.mean_over_ranks(loss).item()
    return {"loss": mean, "gradient": gradient.numpy(), "rows": own.grad.numpy() / dist.world_size()}


def everything() -> dict[str, Any]:
    """All that two ranks can tell, in one start of the processes."""
    me, found = dist.rank(), {name: contrast_of_this_rank(name) for name in LOSSES}
    x = torch.tensor([1.0 + me, 10.0 * (me + 1)], dtype=torch.float64, requires_grad=True)
    gathered = dist.gather_with_gradient(x)
    # Every rank weighs every part by its own factor, so each part's gradient must collect all factors.
    (gathered * torch.tensor([[1.0], [3.0]]) * (me + 1)).sum().backward()
    found["gather"] = {"values": gathered.tolist(), "gradient": x.grad.tolist()}
    y = torch.tensor([2.0 + me], dtype=torch.float64, requires_grad=True)
    total = dist.sum_with_gradient(y)
    (total.square() * (me + 1)).sum().backward()
    found["sum"] = {"values": total.tolist(), "gradient": y.grad.tolist()}
    found["any"] = [dist.any_rank(flag) for flag in (False, me == 1, me == 0, True)]
    found["broadcast"] = dist.broadcast_object({"from": me, "path": f"runs/{me}"})
    averaged = dist.average_gradients([torch.full((2, 2), float(me)), torch.tensor([4.0 * me])])
    found["average"] = [part.tolist() for part in averaged]
    found["who"] = [dist.rank(), dist.world_size(), dist.is_main()]
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_on_ranks(everything, num_ranks=2)


@pytest.mark.dist
@pytest.mark.parametrize("name", list(LOSSES))
def test_contrast_over_two_ranks_equals_one_process_on_the_joined_batch(ranks, name):
    alone = contrast_of_this_rank(name)
    for found in ranks:
        assert found[name]["loss"] == pytest.approx(alone["loss"], abs=1e-9)
        np.testing.assert_allclose(found[name]["gradient"], alone["gradient"], rtol=1e-9, atol=1e-9)
    rows = np.concatenate([found[name]["rows"] for found in ranks], axis=1)
    np.testing.assert_allclose(rows, alone["rows"], rtol=1e-9, atol=1e-9)
    assert np.abs(alone["gradient"]).max() > 0.01


@pytest.mark.dist
def test_gather_stacks_in_rank_order_and_sums_gradients_over_ranks(ranks):
    for me, found in enumerate(ranks):
        assert found["gather"]["values"] == [[1.0, 10.0], [2.0, 20.0]]
        assert found["gather"]["gradient"] == [[1.0, 3.0][me] * (1 + 2)] * 2


@pytest.mark.dist
def test_sum_is_the_same_everywhere_and_its_gradient_is_summed(ranks):
    for found in ranks:
        assert found["sum"]["values"] == [5.0]
        assert found["sum"]["gradient"] == [2 * 5.0 * (1 + 2)]


@pytest.mark.dist
def test_ranks_agree_on_flags_objects_and_averages(ranks):
    for me, found in enumerate(ranks):
        assert found["any"] == [False, True, True, True]
        assert found["broadcast"] == {"from": 0, "path": "runs/0"}
        assert found["average"] == [[[0.5, 0.5], [0.5, 0.5]], [2.0]]
        assert found["who"] == [me, 2, me == 0]


def test_one_process_needs_no_group():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(dist.gather_with_gradient(x), x.unsqueeze(0))
    assert dist.sum_with_gradient(x) is x
    assert not dist.mean_over_ranks(x).requires_grad
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert dist.any_rank(True)
    assert not dist.any_rank(False)
    assert dist.broadcast_object("a") == "a"
    assert dist.average_gradients([x]) == [x]


def start_under_an_agent(port: int) -> list[int]:
    """Both ranks meet through an agent's store, as under torchrun."""
    torch.distributed.destroy_process_group()
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_PORT=str(port))
    dist.start_from_environment("cpu")
    total = torch.tensor([dist.rank() + 1])
    torch.distributed.all_reduce(total)
    return [dist.world_size(), int(total)]


def test_what_dead_ranks_left_with_the_agent_misleads_nobody():
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        agent.set(dist._PORT, str(gone.getsockname()[1]))
    assert run_on_ranks(start_under_an_agent, agent.port, num_ranks=2) == [[2, 3], [2, 3]]


def test_cores_are_those_of_the_affinity_or_all_where_the_system_tells_none(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert dist.allowed_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert dist.allowed_cores() == 6


def test_threads_are_the_cores_a_process_may_run_on_shared_between_ranks(monkeypatch):
    # More threads than cores wait for each other: a job of 4 cores on a machine of 64 is to start 4.
    monkeypatch.setattr(dist, "allowed_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    dist.use_threads(None)
    assert dist.num_threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    dist.use_threads(None)
    assert dist.num_threads() == 2
    dist.use_threads(3)
    assert dist.num_threads() == 3
