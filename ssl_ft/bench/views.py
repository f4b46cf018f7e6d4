"""Two SimCLR views an image from files, ours against `ImageFolder` with lightly's transform, per second of one core.

Both sides run on one thread of this process, and processor time is counted, so that other work on the machine and
threads in the background cannot flatter either.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from ssl_ft.bench.peers import photo_batches
from ssl_ft.bench.timing import Row, Work, at_least, compare, core_seconds, time_in_turns
from ssl_ft.bench.workload import input_contract
from ssl_ft.build.data import build_store, look_at
from ssl_ft.build.parts import build_views
from ssl_ft.config import DataSettings, PretrainSettings
from ssl_ft.data.batches import Cutting, batches
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError

_NEVER = 10**9


def measure(folder: Path, *, rounds: int, size: int = 224, batch_size: int = 64) -> Iterator[Row]:
    """One row: views a second of one core.

    Args:
        folder: a folder with one class folder of image files.
        rounds: timed turns; twice as many are done, as photos differ in size.
        size: side of the views.
        batch_size: images a turn.

    Raises:
        CannotMeasure: lightly is not installed.
        UserError: fewer images than one batch.
    """
    works = [prepare_ours(folder, size=size, batch_size=batch_size)]
    stream = photo_batches(folder, size=size, batch_size=batch_size)
    works.append(lambda: next(stream))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = time_in_turns(works, rounds=2 * rounds, stopwatch=core_seconds)
    finally:
        torch.set_num_threads(threads)
    ours, peer = ([2 * batch_size / value for value in column] for column in seconds)
    yield compare(
        f"two views of {size} px from files: times torchvision's ImageFolder with lightly's transform",
        ours,
        peer,
        unit="views/core-s",
        bar=at_least(2.0),
        note="decoding, crop, flip, colour, blur, normalising, collating; one thread each",
    )


def prepare_ours(folder: Path, *, size: int, batch_size: int) -> Work:
    """Work that reads the next batch of files and gives both its views, [B, 3, size, size] each.

    Raises:
        UserError: fewer images than one batch.
    """
    source = open_source(str(folder), kind="flat")
    if len(source) < batch_size:
        raise UserError(
            f"photos= holds {len(source)} images, and at least {batch_size} are wanted; name a larger folder"
        )
    data = DataSettings(path=str(folder), kind="flat", channels=3, cache="none", workers=1)
    settings = PretrainSettings(data=data, size=size, batch_size=batch_size)
    store = build_store(source, data, kind=look_at(source), channels=3, size=size, seed=0, run=folder)
    views = build_views(settings, input_contract(size))
    cutting = Cutting(views.recipe, num_views=2)
    stream = batches(store, batch_size=batch_size, seed=0, start_step=0, num_steps=_NEVER, workers=0, cutting=cutting)

    def both_views() -> tuple[torch.Tensor, torch.Tensor]:
        batch = next(stream)
        return views(batch, view=0), views(batch, view=1)

    return both_views
