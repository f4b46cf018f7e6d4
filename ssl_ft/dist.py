"""Ranks: who am I, how many are we, and collectives that carry gradients. On one process all of it is the identity.

Gradient convention, used everywhere: each rank backs up its own loss, gradients are then averaged over ranks.
With these collectives that average equals the gradient of the mean of the ranks' losses on one process.
No model, no data here; launching several processes is in `launch.py`.
"""

import os
import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

# Under this name rank 0 leaves the port of its store with torchrun's agent.
_PORT = "ssl_ft: port of rank 0"
# Seconds a rank waits for that port: long enough for a node that is slow to import torch.
_PATIENCE = 300.0


def rank() -> int:
    """This process's number, 0 where there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 where there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this rank writes files and speaks."""
    return rank() == 0


def start_from_environment(device_type: str) -> None:
    """Join the process group that `torchrun` or `launch.run_ranks` described, if one did."""
    if not is_launched() or dist.is_initialized():
        return
    backend = "nccl" if device_type == "cuda" else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    me, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=_store_of_this_start(me), rank=me, world_size=num_ranks)


def _store_of_this_start(me: int) -> TCPStore:
    """A store that the ranks of this start share, kept by rank 0.

    The store of torchrun's agent outlives a restart, and in it the addresses of ranks that have died: whoever comes
    first would find those and knock in vain. Of that store only rank 0's port is asked for, until someone is there.
    """
    host = os.environ["MASTER_ADDR"]  # the agent of rank 0's own node
    agent = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if me == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        agent.set(_PORT, str(store.port))
        return store
    deadline = time.monotonic() + _PATIENCE
    while True:
        port = int(agent.get(_PORT))
        try:
            socket.create_connection((host, port), timeout=5).close()
            # Another process may listen there by now, and would not answer as a store does.
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=20))
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            store.set_timeout(dist.default_pg_timeout)
            return store


def stop() -> None:
    """Leave the process group, if in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank; for small plain values such as a path or a number of steps."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value in rank order, on every rank; plain values or arrays, which may differ in size."""
    if world_size() == 1:
        return [value]
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank; every rank must call it."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)], device=_collective_device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of equal-shaped tensors over ranks, without gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def _collective_device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank used our rows, so their gradients must be summed, not just our own slice taken.
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


def gather_with_gradient(x: Tensor) -> Tensor:
    """Every rank's tensor, stacked in rank order; gradients flow back to the rank each part came from.

    Args:
        x: any shape […], the same on every rank.

    Returns:
        [world_size, …].
    """
    if world_size() == 1:
        return x.unsqueeze(0)
    gathered: Tensor = _Gather.apply(x)
    return gathered


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum over ranks, on every rank; the gradient is summed over ranks too."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


def average_gradients(gradients: list[Tensor]) -> list[Tensor]:
    """Mean over ranks of a list of tensors of one dtype, in one collective."""
    if world_size() == 1:
        return gradients
    flat = torch.cat([g.reshape(-1) for g in gradients])
    flat = mean_over_ranks(flat)
    parts = flat.split([g.numel() for g in gradients])
    return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]


def local_rank() -> int:
    """This process's number on its own machine; known before the process group is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    """Whether `torchrun` or `launch.run_ranks` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def use_threads(num_threads: int | None) -> None:
    """Share the cores this process may run on between the machine's ranks, or use the number given."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(num_threads or max(1, allowed_cores() // local))


def num_threads() -> int:
    """Threads this process computes on."""
    return torch.get_num_threads()


def allowed_cores() -> int:
    """Cores this process may run on; all of the machine's where the system tells no affinity, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
