"""Stage index: look at a data source before anything is trained on it."""

from collections import Counter
from pathlib import Path

import numpy as np

from ssl_ft import handover
from ssl_ft.build.data import open_data
from ssl_ft.config import IndexSettings
from ssl_ft.data.duplicates import content_keys, exact_duplicates, near_duplicates
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.source import Source
from ssl_ft.progress import ProgressLine
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: IndexSettings) -> int:
    """Print and write counts, sizes, channels, damaged files and duplicates."""
    source = open_data(settings.data)
    plain = settings.model_dump(mode="json")
    out = Path(settings.out) if settings.out else default_folder("index", Path(settings.data.path).name, plain)
    run = RunFolder(out, stage="index", settings=plain)
    if run.is_finished:
        return handover.already_done(run)
    with run:
        return _index(settings, source, run)


def _index(settings: IndexSettings, source: Source, run: RunFolder) -> int:
    handover.record_data(run, source, source, role="index")
    run.note(f"{source.location}: {len(source)} images, {source.kind}")
    shapes, damaged = _shapes(source, settings)
    _describe(run, source, shapes, damaged)
    metrics = [("images", len(source)), ("damaged", len(damaged))]
    if settings.duplicates:
        metrics += _duplicates(run, source, settings)
    run.list_damaged([(*row, "") for row in damaged])
    run.write_manifest()
    named = [Metric(name=n, value=v, n=len(source), split="all", model="data") for n, v in metrics]
    run.finish(metrics=named, labels_used=LabelsUsed(), test_scored=0)
    print(run.path)
    return 0


def _shapes(source: Source, settings: IndexSettings) -> tuple[Counter[tuple[int, int, int]], list[tuple[str, str]]]:
    """(channels, height, width) of every image, decoded in full: only that finds damage behind the header."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    damaged = []
    with ProgressLine("decoding", total=len(source)) as progress:
        for index in range(len(source)):
            try:
                image = decode(
                    source.read(index), max_pixels=settings.data.max_pixels, white_level=settings.data.white_level
                )
                shapes[image.shape] += 1
            except (DamagedImage, OSError) as error:
                damaged.append((source.names[index], str(error)))
            progress.update(index + 1)
    return shapes, damaged


def _describe(
    run: RunFolder, source: Source, shapes: Counter[tuple[int, int, int]], damaged: list[tuple[str, str]]
) -> None:
    channels = sorted(Counter(count for count, _, _ in shapes.elements()).items())
    if shapes:
        sides = sorted(min(height, width) for _, height, width in shapes.elements())
        run.note(
            f"short side {sides[0]} to {sides[-1]} px, median {sides[len(sides) // 2]}; {len(shapes)} distinct shapes"
        )
        run.note("channels: " + ", ".join(f"{number} images with {count}" for count, number in channels))
    if source.labels is not None:
        counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
        run.note("labels: " + ", ".join(f"{n} {c}" for n, c in zip(source.class_names, counts.tolist(), strict=True)))
    if source.splits is not None:
        run.note("splits: " + ", ".join(f"{name} {n}" for name, n in sorted(Counter(source.splits.tolist()).items())))
    run.note(f"{len(damaged)} damaged images" + "".join(f"\n  {name}: {reason}" for name, reason in damaged[:10]))


def _duplicates(run: RunFolder, source: Source, settings: IndexSettings) -> list[tuple[str, int]]:
    keys = content_keys(source, workers=settings.data.workers, white_level=settings.data.white_level)
    exact, near = exact_duplicates(keys.pixels), near_duplicates(keys.hashes)
    rows = [
        (kind, source.names[a], source.names[b]) for kind, pairs in (("exact", exact), ("near", near)) for a, b in pairs
    ]
    run.write_table("duplicate_images.csv", ["kind", "first", "second"], rows)
    run.note(f"{len(exact)} copies pixel for pixel, {len(near)} pairs that look alike (worth a look, no proof)")
    return [("exact_duplicates", len(exact)), ("near_duplicates", len(near))]
