"""Stage index: look at a data source before anything is trained on it."""

from collections import Counter
from pathlib import Path

from ssl_ft import handover
from ssl_ft.build.data import open_data
from ssl_ft.build.packing import check_pack, index_shards, pack_source
from ssl_ft.config import IndexSettings
from ssl_ft.data.duplicates import content_keys, exact_duplicates, near_duplicates
from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.listing import census
from ssl_ft.data.source import Source
from ssl_ft.progress import ProgressLine
from ssl_ft.result import LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder


def main(settings: IndexSettings) -> int:
    """Print and write counts, sizes, channels, damaged files and duplicates; index shards; pack into shards."""
    index_shards(settings)
    source = open_data(settings.data)
    plain = settings.model_dump(mode="json")
    out = Path(settings.out) if settings.out else default_folder("index", Path(settings.data.path).name, plain)
    run = RunFolder(out, stage="index", settings=plain)
    if run.is_finished:
        return handover.already_done(run)
    with run:
        check_pack(settings)
        return _index(settings, source, run)


def _index(settings: IndexSettings, source: Source, run: RunFolder) -> int:
    handover.record_data(run, source, source, role="index")
    for sentence in (f"{source.location}: {len(source)} images, {source.kind}", *census(source)):
        run.note(sentence)
    metrics, damaged = [("images", len(source))], dict[str, str]()
    if settings.look:
        shapes, damaged = _shapes(source, settings)
        _describe(run, shapes, damaged)
        metrics += [("damaged", len(damaged)), *(_duplicates(run, source, settings) if settings.duplicates else [])]
    if settings.pack is not None:
        left_out = pack_source(settings, source, run)
        metrics, damaged = [*metrics, ("packed", len(source) - len(left_out))], damaged | left_out
    run.list_damaged([(*row, "") for row in damaged.items()])
    run.write_manifest()
    named = [Metric(name=n, value=v, n=len(source), split="all", model="data") for n, v in metrics]
    run.finish(metrics=named, labels_used=LabelsUsed(), test_scored=0)
    print(run.path)
    return 0


def _shapes(source: Source, settings: IndexSettings) -> tuple[Counter[tuple[int, int, int]], dict[str, str]]:
    """(channels, height, width) of every image, decoded in full: only that finds damage behind the header."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    damaged, data = {}, settings.data
    with ProgressLine("decoding", total=len(source)) as progress:
        for index in range(len(source)):
            try:
                image = decode(source.read(index), max_pixels=data.max_pixels, white_level=data.white_level)
                shapes[image.shape] += 1
            except (DamagedImage, OSError) as error:
                damaged[source.names[index]] = str(error)
            progress.update(index + 1)
    return shapes, damaged


def _describe(run: RunFolder, shapes: Counter[tuple[int, int, int]], damaged: dict[str, str]) -> None:
    channels = sorted(Counter(count for count, _, _ in shapes.elements()).items())
    if shapes:
        sides = sorted(min(height, width) for _, height, width in shapes.elements())
        run.note(
            f"short side {sides[0]} to {sides[-1]} px, median {sides[len(sides) // 2]}; {len(shapes)} distinct shapes"
        )
        run.note("channels: " + ", ".join(f"{number} images with {count}" for count, number in channels))
    first = "".join(f"\n  {name}: {reason}" for name, reason in list(damaged.items())[:10])
    run.note(f"{len(damaged)} damaged images{first}")


def _duplicates(run: RunFolder, source: Source, settings: IndexSettings) -> list[tuple[str, int]]:
    data = settings.data
    keys = content_keys(source, workers=data.workers, white_level=data.white_level, max_pixels=data.max_pixels)
    exact, near = exact_duplicates(keys.pixels), near_duplicates(keys.hashes)
    rows = [
        (kind, source.names[a], source.names[b]) for kind, pairs in (("exact", exact), ("near", near)) for a, b in pairs
    ]
    run.write_table("duplicate_images.csv", ["kind", "first", "second"], rows)
    run.note(f"{len(exact)} copies pixel for pixel, {len(near)} pairs that look alike (worth a look, no proof)")
    return [("exact_duplicates", len(exact)), ("near_duplicates", len(near))]
