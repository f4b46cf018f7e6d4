"""Checkpoints for resuming: one safetensors file with every tensor, its plain values as JSON in the header.

Written to a temporary name and renamed, so a file is whole or absent. Never a pickle. Those of weights that are shared
out over ranks are in `sharded_checkpoint.py`. What a person uses afterwards is the artifact (`artifact.py`).
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_ft.errors import UserError

_FORMAT = "1"


def save_checkpoint(path: Path, *, modules: dict[str, nn.Module], optimizer: Optimizer, values: dict[str, Any]) -> None:
    """Write everything that training needs to go on.

    Args:
        path: the file; its folder exists.
        modules: by name, their whole state dicts.
        optimizer: its state.
        values: plain JSON values such as the step.
    """
    tensors, numbers = contents(modules, optimizer)
    tensors = {key: on_cpu(value) for key, value in tensors.items()}
    header = header_of(values, numbers)
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=header))


def contents(modules: dict[str, nn.Module], optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of modules and optimizer by their names in a checkpoint, and plain numbers of the optimizer's state."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    state = optimizer.state_dict()["state"]
    numbers: dict[str, Any] = {}
    for index, entries in state.items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"optimizer/{index}/{key}"] = value
    return tensors, numbers


def header_of(values: dict[str, Any], numbers: dict[str, Any]) -> dict[str, str]:
    """The header of a checkpoint file."""
    return {"format": _FORMAT, "values": json.dumps(values), "optimizer": json.dumps(numbers)}


def on_cpu(tensor: Tensor) -> Tensor:
    """An independent copy in plain layout, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_checkpoint(path: Path, *, modules: dict[str, nn.Module], optimizer: Optimizer) -> dict[str, Any]:
    """Fill modules and optimizer from a file and give back its values.

    Raises:
        UserError: damaged file, or one that does not belong to these modules.
    """
    tensors, header = _read(path)
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(f"checkpoint {path} does not fit this {name}: {str(error)[:300]}") from error
    fill_optimizer(optimizer, {key: t for key, t in tensors.items() if key.startswith("optimizer/")}, header)
    values: dict[str, Any] = json.loads(header["values"])
    return values


def fill_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Give the optimizer the state that the tensors `optimizer/<index>/<entry>` and a header hold."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *json.loads(header["optimizer"]).items()]:
        _, index, entry = key.split("/")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, own in optimizer.state.items():
        for entry, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                # A file keeps the plain layout; fused kernels go through a weight and its state side by side in memory.
                own[entry] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            values: dict[str, Any] = json.loads(file.metadata()["values"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of ours or is damaged ({error})") from error
    return values


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}); remove it to start again") from error
    check_format(path, header)
    return tensors, header


def check_format(path: Path, header: dict[str, str]) -> None:
    """Refuse a file of another version."""
    if header.get("format") != _FORMAT:
        raise UserError(f"checkpoint {path} has format {header.get('format')!r}, this version reads {_FORMAT!r}")


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(temporary path)`, flush it to disk and rename it to `path`; on failure nothing is left behind."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
