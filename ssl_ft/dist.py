"""Ranks: who am I, how many are we, and collectives that carry gradients. On one process all of it is the identity.

Gradient convention, used everywhere: each rank backs up its own loss, gradients are then averaged over ranks.
With these collectives that average equals the gradient of the mean of the ranks' losses on one process.
No model, no data here; launching several processes is in `launch.py`.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")


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
    """Share the machine's cores between its ranks, or use the number given."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local))
