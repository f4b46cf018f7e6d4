"""What stages do alike: open the labelled data and the run, and record data, duplicates, damage and provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft import __version__, dist
from ssl_ft.artifact import find_model
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.judging import parent_data
from ssl_ft.build.tasks import check_task
from ssl_ft.build.transfer import Trained
from ssl_ft.checkpoint import write_atomically
from ssl_ft.config import DataSettings, FinetuneSettings, PretrainSettings, ProbeSettings
from ssl_ft.data.duplicates import content_keys, exact_duplicates
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles
from ssl_ft.data.store import Damage
from ssl_ft.errors import UserError
from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.result import DataUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder

Indices = NDArray[np.int64]

_POOL_KEYS = "pool_keys.npz"
# Digests of this many images take about a minute on two cores and 10 MB.
_MOST_KEYS = 250_000


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled source with the model to judge on it."""

    model: Path
    data: DataSettings
    source: Source
    roles: Roles


def open_labelled(settings: ProbeSettings | FinetuneSettings) -> Labelled:
    """Find the encoder and open the labelled data: those named, or those the encoder was pretrained on."""
    model = find_model(settings.encoder, kind="encoder")
    data = settings.data or parent_data(model)
    if isinstance(settings, FinetuneSettings):
        check_task(settings, data)
    else:
        check_classes(data, stage="probe")
    source = open_data(data)
    return Labelled(model, data, source, roles_of(source, data))


def check_classes(data: DataSettings, *, stage: str) -> None:
    """Refuse data of another task than classes.

    Raises:
        UserError: as said.
    """
    if data.task != "classes":
        raise UserError(
            f"{stage} judges classes alone, and data.task={data.task}: `ssl-ft finetune` trains and scores the other "
            "tasks (strategy=probe probe.head=trained moves the head alone), or name data with classes"
        )


def open_run(settings: ProbeSettings | FinetuneSettings, labelled: Labelled, *, stage: str, name: str) -> RunFolder:
    """The run folder, its settings with the data resolved."""
    plain = settings.model_dump(mode="json") | {"data": labelled.data.model_dump(mode="json")}
    default = default_folder(name, Path(labelled.data.path).name, plain)
    return RunFolder(Path(settings.out) if settings.out else default, stage=stage, settings=plain)


def pretrain_path(settings: PretrainSettings) -> Path:
    """The run folder of a pretraining: the one named, or one told by data, objective and settings."""
    name = f"{Path(settings.data.path).name}-{settings.objective}"
    return Path(settings.out) if settings.out else default_folder("pretrain", name, settings.model_dump(mode="json"))


def as_metrics(estimates: Sequence[Estimate], *, budget: int | float | str, model: str) -> list[Metric]:
    """Estimates on the test split as rows of `result.json`."""
    per_class = None if isinstance(budget, str) else budget
    return [
        Metric(
            name=e.name,
            value=e.value,
            low=e.low,
            high=e.high,
            n=e.n,
            split="test",
            labels_per_class=per_class,
            model=model,
        )
        for e in estimates
    ]


def training_metrics(trained: Trained, *, budget: int | float | str, model: str) -> list[Metric]:
    """What a training says of itself as rows of `result.json`: its score on val, and what it took."""
    per_class = None if isinstance(budget, str) else budget

    def metric(name: str, value: float, *, n: int, split: str) -> Metric:
        return Metric(name=name, value=value, n=n, split=split, labels_per_class=per_class, model=model)

    rows = [] if trained.val_accuracy is None else [(f"val_{trained.score_name}", trained.val_accuracy)]
    costs = [
        ("trained_parameters", trained.num_trained),
        ("training_seconds", trained.seconds),
        ("training_memory_mb", trained.peak_memory_mb),
    ]
    return [
        *(metric(name, value, n=trained.num_val, split="val") for name, value in rows),
        *(metric(name, value, n=trained.num_train, split="train") for name, value in costs),
    ]


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
        run.note(note)  # said once, however many roles the source has


def record_roles(run: RunFolder, source: Source, *, train: Indices, val: Indices, test: Indices) -> None:
    """Keep which images held which role, each by its own fingerprint: runs on the same test images can be compared."""
    for role, indices in (("train", train), ("val", val), ("test", test)):
        if len(indices):
            record_data(run, source, source.subset(indices), role=role)


def keep_pool_keys(run: RunFolder, pool: Source, settings: DataSettings) -> None:
    """Keep a digest of every pool image's pixels, so that this and later stages can look for test images among them."""
    if not dist.is_main() or (run.path / _POOL_KEYS).is_file():
        return
    if len(pool) > _MOST_KEYS:
        run.note(f"the pool has more than {_MOST_KEYS:,} images: it is not searched for test images")
        return
    keys = content_keys(pool, workers=settings.workers, white_level=settings.white_level)
    write_atomically(run.path / _POOL_KEYS, lambda partial: _save_keys(partial, keys.pixels, pool))


def report_duplicates(run: RunFolder, pool_run: Path, source: Source, test: NDArray[np.int64]) -> None:
    """List test images whose very pixels are in the pool an encoder was pretrained on.

    Args:
        run: where the list and the sentence go.
        pool_run: the pretraining's run folder.
        source: holds the test images.
        test: int64 [N], which they are.
    """
    path = pool_run / _POOL_KEYS
    if not dist.is_main() or not len(test):
        return
    if not path.is_file():
        run.note("the pretraining pool's digests are not at hand: it is not known whether it holds test images")
        return
    with np.load(path, allow_pickle=False) as known:
        pool, names = known["pixels"], known["names"]
    held_out = source.subset(test)
    pairs = exact_duplicates(pool, content_keys(held_out).pixels)
    if len(pairs):
        run.write_table("duplicates.csv", ["pool", "test"], [(names[a], held_out.names[b]) for a, b in pairs])
        run.note(f"{len(pairs)} test images are also in the pretraining pool, pixel for pixel; see duplicates.csv")
    else:
        run.note(f"none of the {len(test)} test images is in the pretraining pool, pixel for pixel")


def _save_keys(partial: Path, pixels: NDArray[np.uint64], pool: Source) -> None:
    with partial.open("wb") as file:
        np.savez_compressed(file, pixels=pixels, names=np.array(list(pool.names), dtype=np.str_))


def write_damages(run: RunFolder, damages: Sequence[Damage]) -> None:
    """List the damaged images met, with what stood in for each."""
    if damages:
        run.list_damaged([(damage.name, damage.reason, damage.replacement) for damage in damages])
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
