"""Run a function on several gloo processes and bring back what each gave; a failure on one is raised here.

Ranks are forked from a server that has imported the libraries once and computed nothing: each starts as fresh as a new
process would, without seconds of imports.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any


def forkserver() -> Any:
    """Where processes are forked from a server that has the libraries: they alone, for the server looks for modules
    where it was started, which need not be this checkout.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.fsdp", "timm", "torchvision", "sklearn.linear_model", "pyarrow"])
    return context


def run_on_ranks(function: Callable[..., Any], *args: Any, num_ranks: int) -> list[Any]:
    """Results of `function(*args)` by rank; the function is a module's, results are plain values or arrays."""
    context = forkserver()
    queue = context.Queue()
    # Ranks meet through a file: a port found free may be taken by another test before they listen on it.
    folder = tempfile.TemporaryDirectory()
    place = f"file://{folder.name}/meeting"
    ranks = [
        context.Process(target=_one_rank, args=(rank, num_ranks, place, queue, function, args))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    results: dict[int, Any] = {}
    try:
        for _ in ranks:
            rank, result, error = queue.get(timeout=300)
            assert error is None, f"rank {rank} failed:\n{error}"
            results[rank] = result
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()
            process.join()
        folder.cleanup()
    return [results[rank] for rank in range(num_ranks)]


def _one_rank(rank: int, num_ranks: int, place: str, queue: Any, function: Callable[..., Any], args: Any) -> None:
    import torch
    import torch.distributed as dist

    size = str(num_ranks)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=num_ranks)
        queue.put((rank, function(*args), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
