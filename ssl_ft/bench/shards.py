"""An epoch of many images in shards, read by real ranks as training reads them: who comes when, and how memory goes.

Correctness at size rather than speed: each image once, the same order on any number of ranks and after a kill, memory
that does not grow. Packing and reading themselves are in `data/`.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssl_ft import dist
from ssl_ft.bench.memory import resident_mb
from ssl_ft.bench.pools import stored_images
from ssl_ft.bench.timing import CannotMeasure, Row, at_most, wall_seconds
from ssl_ft.build.data import build_order, build_store, look_at, open_data
from ssl_ft.config import DataSettings
from ssl_ft.data.batches import batches
from ssl_ft.data.packing import PackOptions, pack
from ssl_ft.data.permutation import steps_per_epoch
from ssl_ft.data.source import Source
from ssl_ft.launch import run_ranks

Layout = Literal["tar", "parquet"]
Counts = NDArray[np.int64]
Images = Sequence[bytes | NDArray[np.generic]]

_NUM_IMAGES, _BATCH_SIZE, _SEED = 200_000, 512, 0
_SHARD_BYTES = 16 * 2**20
_LAYOUTS: tuple[Layout, ...] = ("tar", "parquet")
# Of an epoch. The first tenth fills the readers' buffers; the kill comes well after, and not at a round number.
_EARLY, _KILLED_AT = 0.1, 0.437
# Steps between two looks at the memory.
_LOOK_EVERY = 8


@dataclass(frozen=True)
class Reading:
    """One epoch's steps for one rank to read, as it is told to every rank.

    Attributes:
        shards: folder of the shards.
        logs: folder in which each rank keeps what it read and how much memory it held.
        start_step: first step.
        num_steps: one past the last step.
        killed_at: step after which the last rank is killed; None reads to the end.
    """

    shards: str
    logs: str
    start_step: int
    num_steps: int
    killed_at: int | None = None


def measure(data: str | None, *, num_images: int = _NUM_IMAGES) -> Iterator[Row]:
    """Rows of both layouts of shards.

    Args:
        data: images to repeat until there are enough; None repeats noise.
        num_images: how many the shards hold.

    Raises:
        CannotMeasure: the ranks could not be started.
    """
    for layout in _LAYOUTS:
        with TemporaryDirectory(prefix="ssl-ft-bench-") as place:
            yield from _rows(Path(place), layout, stored_images(data), num_images)


def _rows(place: Path, layout: Layout, images: Images, num_images: int) -> Iterator[Row]:
    what = f"{num_images:,} images in {layout} shards"
    packing = wall_seconds(lambda: pack_repeated(images, place / "shards", layout=layout, num_images=num_images))
    num_steps = steps_per_epoch(num_images=num_images, batch_size=_BATCH_SIZE)
    reading = Reading(str(place / "shards"), "", 0, num_steps)
    alone = replace(reading, logs=str(place / "one"))
    seconds = wall_seconds(lambda: _read_on_ranks(alone, num_ranks=1))
    order, memory = orders_of(Path(alone.logs), num_ranks=1)
    note = f"one epoch of {num_steps} steps of {_BATCH_SIZE}; packed in {packing:.1f} s"
    yield Row(f"{what}: images not met exactly once", missed(order, num_images), None, "images",
              note=note, bar=at_most(0, of="ours"))  # fmt: skip
    yield Row(f"{what}: read and decoded on one rank", order.size / seconds, None, "images/s",
              note="start of the process included")  # fmt: skip
    cut = max(1, round(_EARLY * len(memory)))
    early, late = float(memory[:cut].max()), float(memory[cut:].max())
    yield Row(f"{what}: peak memory after the first tenth of the epoch", late, early, "MB", ratio=late / early,
              note="of the whole process; peer: the peak within that tenth", bar=at_most(1.05))  # fmt: skip
    pair = replace(reading, logs=str(place / "two"))
    killed_at = round(_KILLED_AT * num_steps)
    again = _read_in_two_lives(pair, killed_at=killed_at)
    found, _ = orders_of(Path(pair.logs), num_ranks=2)
    different = int((found != order).any(axis=1).sum()) if found.shape == order.shape else num_steps
    note = (
        f"rank 1 killed by SIGKILL after step {killed_at}, both started again at step {again}; against one whole rank"
    )
    yield Row(f"{what}: steps with other images or another order on 2 ranks, killed and resumed", different, None,
              "steps", note=note, bar=at_most(0, of="ours"))  # fmt: skip


def pack_repeated(images: Images, out: Path, *, layout: Layout, num_images: int) -> None:
    """Shards of `num_images` images, `images` over and over, each under a name of its own."""
    source = Source(
        kind="array",
        location="repeated images",
        names=[f"{number:07}" for number in range(num_images)],
        read=lambda index: images[index % len(images)],
        evidence=lambda index: index.to_bytes(8, "little"),
    )
    pack(source, out, PackOptions(layout=layout, shard_bytes=_SHARD_BYTES))


def missed(order: Counts, num_images: int) -> int:
    """How many of the images that fill an epoch's whole batches were met twice or more; order is int64 [steps, B].

    The last, partial batch of an epoch is left out, so as many may be met once or never.
    """
    times = np.bincount(order.ravel(), minlength=num_images)
    return int((times > 1).sum()) + abs(int((times > 0).sum()) - order.size)


def _read_on_ranks(reading: Reading, *, num_ranks: int) -> None:
    code = run_ranks(read_epoch, reading, num_ranks=num_ranks)
    if code and reading.killed_at is None:
        raise CannotMeasure(f"{num_ranks} ranks that read shards ended with exit code {code}")


def _read_in_two_lives(reading: Reading, *, killed_at: int) -> int:
    """Read on two ranks, of which one is killed, then on two from the last step both had done; gives that step."""
    _read_on_ranks(replace(reading, killed_at=killed_at), num_ranks=2)
    share = _BATCH_SIZE // 2
    logs = [_order_log(Path(reading.logs), rank) for rank in range(2)]
    done = min(log.stat().st_size // (8 * share) for log in logs)
    for log in logs:
        os.truncate(log, 8 * share * done)
    _read_on_ranks(replace(reading, start_step=done), num_ranks=2)
    return int(done)


def read_epoch(reading: Reading) -> int:
    """One rank's part: decode its share of every step, and keep which images they were and the memory held."""
    dist.start_from_environment("cpu")
    dist.use_threads(1)
    settings = DataSettings(path=reading.shards, cache="none")
    source = open_data(settings)
    kind = look_at(source)
    store = build_store(source, settings, kind=kind, channels=kind.channels, size=kind.short_side, seed=_SEED,
                        run=Path(reading.logs))  # fmt: skip
    stream = batches(store, batch_size=_BATCH_SIZE, seed=_SEED, start_step=reading.start_step,
                     num_steps=reading.num_steps, workers=2, order=build_order(source, settings))  # fmt: skip
    logs = Path(reading.logs)
    logs.mkdir(parents=True, exist_ok=True)
    with _order_log(logs, dist.rank()).open("ab") as order, _memory_log(logs, dist.rank()).open("a") as memory:
        for step, batch in enumerate(stream, start=reading.start_step):
            order.write(batch.indices_B.numpy().tobytes())
            order.flush()
            if step % _LOOK_EVERY == 0:
                memory.write(f"{resident_mb():.1f}\n")
            if step == reading.killed_at and dist.rank() == dist.world_size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
    dist.stop()
    return 0


def orders_of(logs: Path, *, num_ranks: int) -> tuple[Counts, NDArray[np.float64]]:
    """Images of each step in the order of the joined batch, int64 [steps, B], and rank 0's memory in MB over time."""
    share = _BATCH_SIZE // num_ranks
    parts = [np.fromfile(_order_log(logs, rank), np.int64).reshape(-1, share) for rank in range(num_ranks)]
    steps = min(len(part) for part in parts)
    memory = np.loadtxt(_memory_log(logs, 0), ndmin=1)
    return np.concatenate([part[:steps] for part in parts], axis=1), memory


def _order_log(logs: Path, rank: int) -> Path:
    return logs / f"order-{rank}.bin"


def _memory_log(logs: Path, rank: int) -> Path:
    return logs / f"memory-{rank}.txt"
