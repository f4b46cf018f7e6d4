"""Stage bench: speed and memory on this machine, beside what one would otherwise use, measured in one run."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ssl_ft import dist
from ssl_ft.bench.pools import open_pool, photo_folder
from ssl_ft.bench.table import check_writable, print_table, write_rows
from ssl_ft.bench.timing import CannotMeasure, Row, unmeasured
from ssl_ft.build.data import open_data
from ssl_ft.config import BenchSettings, DataSettings
from ssl_ft.runlog import say

# The slowest comes last.
_CPU_ROWS = ("contrast", "training", "views", "masked", "order", "ranks", "shards", "probe")
_POOL_IMAGES = 2048


def main(settings: BenchSettings) -> int:
    """Measure the rows asked for, print them, and write them where a file is named; a missed bar is no failure."""
    for place in (settings.data, settings.photos):
        if place is not None:  # a mistake should not come up after minutes
            open_data(DataSettings(path=place))
    rows: list[Row] = []
    if settings.out is not None:
        check_writable(Path(settings.out))
    dist.use_threads(settings.threads)
    for name in _chosen(settings):
        say(f"measuring {name}")
        try:
            for row in _measure(name, settings):
                rows.append(row)
                say(f"  {row.name}: done")
        except CannotMeasure as reason:
            rows.append(unmeasured(name, str(reason)))
        if settings.out is not None:
            write_rows(Path(settings.out), rows)
    print_table(rows)
    if settings.out is not None:
        print(settings.out)
    return 0


def _chosen(settings: BenchSettings) -> tuple[str, ...]:
    named = settings.rows or (() if settings.gpu else _CPU_ROWS)
    return tuple(dict.fromkeys((*named, *(("gpu",) if settings.gpu else ()))))


def _measure(name: str, settings: BenchSettings) -> Iterator[Row]:
    """The rows of a subject; each is imported only when it is measured."""
    rounds = settings.repeats
    if name == "contrast":
        from ssl_ft.bench import contrast

        yield from contrast.measure(rounds=rounds)
    elif name == "training":
        from ssl_ft.bench import training

        pool = open_pool(settings.data, size=32, count=_POOL_IMAGES)
        yield from training.measure(pool, rounds=rounds, workers=torch.get_num_threads())
    elif name == "views":
        from ssl_ft.bench import views

        with photo_folder(settings.photos) as folder:
            yield from views.measure(folder, rounds=rounds)
    elif name == "masked":
        from ssl_ft.bench import masked

        yield from masked.measure(rounds=rounds)
    elif name in ("order", "ranks"):
        from ssl_ft.bench import order, ranks

        yield from order.measure() if name == "order" else ranks.measure()
    elif name == "shards":
        from ssl_ft.bench import shards

        yield from shards.measure(settings.data)
    elif name == "probe":
        from ssl_ft.bench import probe

        yield from probe.measure(rounds=rounds)
    else:
        from ssl_ft.bench import gpu

        yield from gpu.measure(gpu.find_device(), rounds=rounds)
