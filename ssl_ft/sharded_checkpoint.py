"""Checkpoints of weights that are shared out over ranks: each rank writes its rows, any number of ranks reads them.

<checkpoints>/last-000000200/rank-00000.safetensors, rank-00001.safetensors, …

A folder is there whole or not at all, the one before stays until then, and training goes on meanwhile. Tensors and
JSON as in `checkpoint.py`: torch's own distributed checkpoints are found through a pickle, which is never loaded here.
"""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from ssl_ft import dist
from ssl_ft.checkpoint import check_format, contents, fill_optimizer, header_of, on_cpu, read_values, write_atomically
from ssl_ft.errors import UserError
from ssl_ft.sharded import own_rows


class ShardWriter:
    """Writes checkpoints of sharded modules behind training's back, one at a time; every rank has one.

    Args:
        folder: of the run's checkpoints, the same for all ranks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A group of its own: what the writing thread says must not mix with what training says.
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup), "every rank is in it"
        self._group = group
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, name: str, step: int, *, modules: dict[str, nn.Module], optimizer: Optimizer, values: dict[str, Any]
    ) -> None:
        """Copy this rank's part and go on; the files come later. Every rank must call it.

        Args:
            name: such as `last`; the one before of this name goes when the new one is there.
            step: steps done.
            modules: by name.
            optimizer: its state.
            values: plain JSON values.
        """
        self.wait()
        tensors, numbers = contents(modules, optimizer)
        rows = {key: own_rows(value) for key, value in tensors.items()}
        # What is whole on every rank is written by one; of a tensor of few rows some ranks have none.
        own = {
            key: on_cpu(local)
            for key, (local, _, end) in rows.items()
            if (dist.is_main() if end is None else local.numel())
        }
        header = header_of(values, numbers) | {"ranks": str(dist.world_size())}
        self._pending = self._thread.submit(self._write, name, step, own, header)

    def wait(self) -> None:
        """Return when the last checkpoint is written; what went wrong with it is raised here."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, name: str, step: int, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        final = self.folder / f"{name}-{step:09d}"
        # Another number of ranks may have died while it wrote the same step.
        partial = self.folder / f".{final.name}-of-{header['ranks']}.partial"
        problem: Exception | None = None
        try:
            partial.mkdir(exist_ok=True)
            path = partial / f"rank-{dist.rank():05d}.safetensors"
            write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
        except Exception as error:
            problem = error  # told to the others first, who would wait for ever
        failed = torch.tensor([int(problem is not None)])
        distributed.all_reduce(failed, group=self._group)
        if problem is not None:
            raise problem
        if failed.item():
            raise UserError(f"another rank could not write its part of the checkpoint {final}")
        if dist.is_main():
            shutil.rmtree(final, ignore_errors=True)  # of this very step, from before a restart
            partial.rename(final)
            for older in [*self.folder.glob(f"{name}-*"), *self.folder.glob(f".{name}-*.partial")]:
                if older != final:
                    shutil.rmtree(older, ignore_errors=True)


def last_files(folder: Path) -> list[Path]:
    """The files of the newest checkpoint called `last` in a folder, sharded or not; empty where there is none."""
    sharded, single = max(folder.glob("last-*"), default=None), folder / "last.safetensors"
    if sharded is not None and (
        not single.is_file() or int(sharded.name.rpartition("-")[2]) >= read_values(single)["step"]
    ):
        return sorted(sharded.glob("rank-*.safetensors"))
    return [single] if single.is_file() else []


@torch.no_grad()
def load_shards(paths: list[Path], *, modules: dict[str, nn.Module], optimizer: Optimizer) -> dict[str, Any]:
    """Fill modules and optimizer, shared out over ranks or whole, from the files of one checkpoint; gives its values.

    Raises:
        UserError: a damaged or missing file, or one that does not belong to these modules.
    """
    try:
        pieces = _Pieces(paths)
        for name, module in modules.items():
            targets = {f"{name}/{key}": value for key, value in module.state_dict().items()}
            misfits = targets.keys() ^ {key for key in pieces.files if key.startswith(f"{name}/")}
            misfits |= {key for key in targets.keys() - misfits if pieces.shape(key) != targets[key].shape}
            if misfits:
                raise UserError(f"checkpoint {paths[0].parent} does not fit this {name}: {sorted(misfits)[:3]}")
            for key, target in targets.items():
                pieces.fill(target, key)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            key: pieces.like(parameters[int(key.split("/")[1])], key)
            for key in pieces.files
            if key.startswith("optimizer/")
        }
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {paths[0].parent} cannot be read ({error}); remove it to start again") from error
    fill_optimizer(optimizer, state, pieces.header)
    values: dict[str, Any] = json.loads(pieces.header["values"])
    return values


class _Pieces:
    """Files of one checkpoint, in order of their ranks, read as if every tensor lay in one.

    Attributes:
        header: of the first file.
        files: those that hold rows of a tensor, by its name.
    """

    def __init__(self, paths: list[Path]) -> None:
        opened = [safe_open(path, framework="pt") for path in paths]
        self.header: dict[str, str] = opened[0].metadata() or {}
        check_format(paths[0], self.header)
        num_ranks = int(self.header.get("ranks", "1"))
        if num_ranks != len(paths):
            raise UserError(
                f"checkpoint {paths[0].parent} was written by {num_ranks} ranks and holds {len(paths)} of their files; "
                "bring the others back, or remove it to start again"
            )
        self.files: dict[str, list[Any]] = {}
        for file in opened:
            for key in file.keys():  # noqa: SIM118  # not a dict
                self.files.setdefault(key, []).append(file)

    def shape(self, key: str) -> torch.Size:
        """The shape of the whole tensor."""
        shapes = [file.get_slice(key).get_shape() for file in self.files[key]]
        if len(shapes) == 1:
            return torch.Size(shapes[0])
        return torch.Size([sum(shape[0] for shape in shapes), *shapes[0][1:]])

    def rows(self, key: str, start: int, end: int | None) -> Tensor:
        """Rows `start` to `end` − 1 of a tensor, or all of it."""
        if end is None:
            whole = [file.get_tensor(key) for file in self.files[key]]
            return whole[0] if len(whole) == 1 else torch.cat(whole)
        parts, first = [], 0
        for file in self.files[key]:
            piece = file.get_slice(key)
            count = piece.get_shape()[0]
            if first < end and start < first + count:
                parts.append(piece[max(start - first, 0) : min(end - first, count)])
            first += count
        return torch.cat(parts)

    def fill(self, target: Tensor, key: str) -> None:
        """Copy what this rank holds of the tensor `key` into it."""
        local, start, end = own_rows(target)
        if local.numel():
            local.copy_(self.rows(key, start, end))

    def like(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The tensor `key` shared out as its parameter is, where it has the parameter's shape; else whole."""
        if not hasattr(parameter, "to_local") or self.shape(key) != parameter.shape:
            return self.rows(key, 0, None)
        state = torch.zeros_like(parameter, requires_grad=False)
        self.fill(state, key)
        return state
