"""Weights, gradients and optimizer states shared out over ranks (FSDP2), for encoders that outgrow a GPU.

Each block of the encoder is a unit whose weights are together only while it computes; the numbers are those of whole
weights. Checkpoints are in `sharded_checkpoint.py`. Importing this starts nothing; on one process all is as without.
"""

import copy

import torch
from torch import Tensor, nn

from ssl_ft import dist
from ssl_ft.errors import UserError
from ssl_ft.models.blocks import blocks_of


def shard(objective: nn.Module, encoder: nn.Module, device: torch.device) -> nn.Module:
    """Share the objective's parameters out over all ranks, in place; they become DTensors split by rows.

    Call it before the optimizer is built.

    Args:
        objective: whole and equal on every rank, on its device.
        encoder: the part of it whose blocks become units.
        device: where it computes.

    Returns:
        A copy of the objective without weights, which `gathered` fills.

    Raises:
        UserError: one rank, or an encoder whose blocks are not known.
    """
    if dist.world_size() == 1:
        raise UserError(
            "sharding=fsdp shares weights out over ranks, and there is one: give devices=2 or more, start the ranks "
            "with torchrun, or leave sharding out"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = blocks_of(encoder, setting="sharding=fsdp")
    hollow = _without_weights(objective)
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for parameter in objective.parameters():
        parameter.data = parameter.data.contiguous()  # rows of filters that lie channels last could not be cut off
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return hollow


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on this module."""
    if dist.world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def own_rows(tensor: Tensor) -> tuple[Tensor, int, int | None]:
    """What this rank holds of a tensor, without gradient, and its first row and the row after its last.

    A tensor that is not shared out is whole on every rank: its last row is given as None.
    """
    if not hasattr(tensor, "to_local"):
        return tensor.detach(), 0, None
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]  # a DTensor, imported only where needed
    each = -(-tensor.shape[0] // dist.world_size())
    start = min(dist.rank() * each, tensor.shape[0])
    assert local.shape[1:] == tensor.shape[1:], "tensors are cut by rows"
    assert len(local) == min(each, tensor.shape[0] - start), "rows are dealt as torch.chunk deals them"
    return local, start, start + len(local)


@torch.no_grad()
def gathered(module: nn.Module, hollow: nn.Module) -> nn.Module:
    """A plain copy with whole weights, on every rank; all must call it.

    Args:
        module: a sharded objective or a part of one.
        hollow: the same part of what `shard` gave.
    """
    state = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in module.state_dict().items()
    }
    whole = copy.deepcopy(hollow)
    whole.load_state_dict(state, assign=True)
    return whole.train(module.training)


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory; buffers are kept, as state dicts do not hold all of them."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, empty)


@torch.no_grad()
def clip_gradients(objective: nn.Module, most: float | None) -> Tensor:
    """Scale the gradients down where their joint norm is above `most`; gives the norm before, a scalar."""
    if not is_sharded(objective):
        return nn.utils.clip_grad_norm_(objective.parameters(), most or float("inf"))
    gradients = [own_rows(p.grad)[0] for p in objective.parameters() if p.grad is not None]
    square = nn.utils.get_total_norm(gradients).square()
    norm = (dist.mean_over_ranks(square) * dist.world_size()).sqrt()
    if most is not None:
        factor = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for gradient in gradients:
            gradient.mul_(factor)
    return norm
