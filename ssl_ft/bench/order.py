"""The order of a billion images: time and memory of its batches at random steps."""

from collections.abc import Iterator

import numpy as np
import torch

from ssl_ft.bench.memory import cost_in_own_process
from ssl_ft.bench.timing import Row, Work, at_most
from ssl_ft.data.permutation import batch_indices, permute, steps_per_epoch

_NUM_IMAGES, _BATCH_SIZE, _NUM_EPOCHS = 10**9, 4096, 100
_PROVEN = (1, 2, 3, 1000, 4097, 65536)


def measure(*, num_batches: int = 10_000) -> Iterator[Row]:
    """Rows of time and of memory.

    Raises:
        CannotMeasure: memory cannot be read here.
    """
    assert all(is_bijection(count) for count in _PROVEN), "the order of images leaves some out"
    cost = cost_in_own_process(prepare, num_batches, warm_up_size=10, num_threads=torch.get_num_threads())
    what = f"order of {_NUM_IMAGES:.0e} images, {num_batches:,} batches of {_BATCH_SIZE} at random steps"
    note = f"every image exactly once, tried in full for N = {', '.join(map(str, _PROVEN))}"
    per_batch = 1000 * cost.seconds / num_batches
    yield Row(f"{what}: time of one", per_batch, None, "ms", note=note, bar=at_most(2.0, of="ours"))
    note = "peak of a fresh process less what it held before"
    yield Row(f"{what}: extra memory", cost.extra_mb, None, "MB", note=note, bar=at_most(10.0, of="ours"))


def prepare(num_batches: int) -> Work:
    """Work that looks up as many batches at random steps of 100 epochs."""
    last = _NUM_EPOCHS * steps_per_epoch(num_images=_NUM_IMAGES, batch_size=_BATCH_SIZE)
    steps = np.random.default_rng(0).integers(0, last, num_batches).tolist()

    def work() -> None:
        for step in steps:
            batch_indices(step, num_images=_NUM_IMAGES, batch_size=_BATCH_SIZE, seed=0)

    return work


def is_bijection(count: int) -> bool:
    """Whether the permutation of `count` items meets each exactly once."""
    places = torch.arange(count)
    return bool(torch.equal(permute(places, num_items=count, key=7).sort().values, places))
