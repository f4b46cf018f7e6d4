"""What stages write alike: data records, duplicates, damaged files, provenance."""

import numpy as np

from ssl_ft import __version__, dist
from ssl_ft.config import DataSettings
from ssl_ft.data.duplicates import content_keys, exact_duplicates
from ssl_ft.data.source import Source
from ssl_ft.data.store import ImageStore
from ssl_ft.result import DataUsed
from ssl_ft.runlog import RunFolder


def already_done(run: RunFolder) -> int:
    """Say that the run ended before, and where it is."""
    run.note(f"{run.path} is finished; nothing to do")
    if dist.is_main():
        print(run.path)
    dist.stop()
    return 0


def record_data(run: RunFolder, source: Source, part: Source, *, role: str) -> None:
    """Keep which images were used, by fingerprint, and what was odd about them."""
    run.data.append(
        DataUsed(
            role=role,
            location=source.location,
            kind=source.kind,
            num_images=len(part),
            fingerprint=part.fingerprint(),
        )
    )
    for note in source.notes:
        run.note(note)


def report_duplicates(run: RunFolder, source: Source, pool: Source, settings: DataSettings) -> None:
    """List images of the pool whose very pixels are also in the source's test split, before anything is trained."""
    if source.splits is None or not np.any(source.splits == settings.test_split) or not dist.is_main():
        return
    test = source.subset(np.flatnonzero(source.splits == settings.test_split))
    pairs = exact_duplicates(content_keys(pool).pixels, content_keys(test).pixels)
    if len(pairs):
        run.write_table("duplicates.csv", ["pool", "test"], [(pool.names[a], test.names[b]) for a, b in pairs])
        run.note(f"{len(pairs)} images of the pool are also in the test split, pixel for pixel; see duplicates.csv")
    else:
        run.note(f"no image of the pool is among the {len(test)} of the test split, pixel for pixel")


def write_damages(run: RunFolder, store: ImageStore) -> None:
    """List the damaged images met, with what stood in for each."""
    damages = store.damages
    if damages:
        rows = [(damage.name, damage.reason, damage.replacement) for damage in damages]
        run.write_table("damaged.csv", ["path", "reason", "replacement"], rows)
        run.note(f"{len(damages)} damaged images were replaced by others; see damaged.csv")


def provenance(objective: str, pretrained: str | None, run: RunFolder, *, steps: int) -> dict[str, object]:
    """What a model card says about where the model comes from."""
    return {
        "objective": objective,
        "steps": steps,
        "data": [f"{d.role}: {d.num_images} images, SHA-256 {d.fingerprint}" for d in run.data],
        "started from": pretrained or "random weights",
        "parents": [parent.sha256 for parent in run.parents],
        "software": f"ssl_ft {__version__}",
        "licence": "that of the images and of any weights it started from; none is granted here",
    }
