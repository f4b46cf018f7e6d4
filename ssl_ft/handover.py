"""What stages do alike: open the labelled data and the run, and record data, duplicates, damage and provenance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft import __version__, dist
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import LabelSplit
from ssl_ft.build.origins import Origin, find_origin, with_measured_contract
from ssl_ft.build.tasks import check_classes, check_task
from ssl_ft.build.transfer import Trained
from ssl_ft.config import (
    AdaptSettings,
    AlsoSettings,
    CompressSettings,
    DataSettings,
    FinetuneSettings,
    PretrainSettings,
    ProbeSettings,
    SelftrainSettings,
)
from ssl_ft.data.duplicates import exact_duplicates
from ssl_ft.data.joining import join_labelled
from ssl_ft.data.pool_keys import PoolKeys, pixel_digests, read_pool_keys, write_pool_keys
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles
from ssl_ft.data.store import Damage
from ssl_ft.errors import UserError
from ssl_ft.evaluate.metrics import Estimate
from ssl_ft.result import DataUsed, LabelsUsed, Metric
from ssl_ft.runlog import RunFolder, default_folder

Indices = NDArray[np.int64]

_POOL_KEYS = "pool_keys.npz"
# Digests of this many images take about a minute on two cores and 10 MB.
_MOST_KEYS = 250_000


@dataclass(frozen=True, eq=False)
class Labelled:
    """A labelled source with the model to judge on it.

    Attributes:
        origin: where the model comes from.
        data: how the source is read.
        source: what is judged on; roles and budgets are its own.
        roles: of its images.
        also: training images of further sources.
        joined: the source followed by those; the source itself where there are none.
    """

    origin: Origin
    data: DataSettings
    source: Source
    roles: Roles
    also: tuple[Source, ...]
    joined: Source

    @property
    def also_indices(self) -> Indices:
        """int64, the images of further sources in `joined`."""
        return np.arange(len(self.source), len(self.joined))


def open_labelled(settings: ProbeSettings | FinetuneSettings) -> Labelled:
    """Find the encoder and open the labelled data: those named, or those the encoder was pretrained on.

    Raises:
        UserError: no such encoder or data, no labels, or data left out where the encoder names none.
    """
    origin = find_origin(settings.encoder, settings.source)
    data = settings.data
    if data is None and (origin.folder is None or origin.kind != "encoder"):
        held = "a classifier, which has been trained on its data" if origin.folder else "weights that tell of no data"
        raise UserError(f"encoder={settings.encoder} gives {held}: name the labelled set with data=")
    data = data or parent_data(origin.folder)  # type: ignore[arg-type]  # it has one: see above
    stage = _classes_stage(settings)
    if stage:
        check_classes(data, stage=stage)
    if isinstance(settings, FinetuneSettings):
        check_task(settings, data)
    source = open_data(data)
    roles = roles_of(source, data)
    origin = with_measured_contract(origin, source, roles.train, data)
    if not isinstance(settings, FinetuneSettings) or not settings.also:
        return Labelled(origin, data, source, roles, (), source)
    also = tuple(_training_part(each, data) for each in settings.also)
    joined = join_labelled(source, also, is_union=settings.also_classes == "union")
    return Labelled(origin, data, source, roles, also, joined)


def _classes_stage(settings: ProbeSettings | FinetuneSettings) -> str:
    """The stage whose settings these are, where it knows classes alone; else empty."""
    stages = {ProbeSettings: "probe", SelftrainSettings: "selftrain", AdaptSettings: "adapt"}
    return stages.get(type(settings), "")


def plan_labelled(settings: ProbeSettings | FinetuneSettings) -> list[str]:
    """What a stage on labels would start from and judge by, in sentences."""
    labelled = open_labelled(settings)
    source, roles = labelled.source, labelled.roles
    what = f"labels of {len(source.class_names)} classes"
    if source.task != "classes":
        what = f"targets ({source.task}) {', '.join(source.target_names)}"
    return [
        f"encoder: {labelled.origin.location}",
        f"{source.location}: {len(roles.train)} train, {len(roles.val)} val, {len(roles.test)} test images with "
        f"{what}; test is scored once a model",
        *(f"{each.location}: {len(each)} labelled images are trained on too" for each in labelled.also),
    ]


def _training_part(settings: AlsoSettings, data: DataSettings) -> Source:
    """The labelled training images of a further source: those that fine-tuning on it alone would train on."""
    own = data.model_copy(update=settings.model_dump() | {"val_split": None, "limit": None, "test_path": None})
    source = open_data(own)
    return source.subset(roles_of(source, own).train)


def open_run(
    settings: ProbeSettings | FinetuneSettings | CompressSettings, labelled: Labelled, *, stage: str, name: str
) -> RunFolder:
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


def row_logger(run: RunFolder) -> Callable[[int, dict[str, float]], None]:
    """Keeps rows of a training on labels in the run: steps done, losses, and of an evaluation what val said."""
    return lambda step, row: run.log({"step": step, "kind": "eval" if "val_loss" in row else "train", **row})


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


def record_roles(
    run: RunFolder, source: Source, *, train: Indices, val: Indices, test: Indices, also: Sequence[Source] = ()
) -> None:
    """Keep which images held which role, each by its own fingerprint: runs on the same test images can be compared."""
    for role, indices in (("train", train), ("val", val), ("test", test)):
        if len(indices):
            record_data(run, source, source.subset(indices), role=role)
    for other in also:
        record_data(run, other, other, role="also")


def keep_pool_keys(run: RunFolder, pool: Source, settings: DataSettings) -> None:
    """Keep a digest of every pool image's pixels, so that this and later stages can look for test images among them.

    Every rank must call it, and reads its share of the pool: one that waited for another would give up in the end.
    """
    path = run.path / _POOL_KEYS
    if dist.broadcast_object(isinstance(_kept_keys(path), PoolKeys)):
        return
    if len(pool) > _MOST_KEYS:
        run.note(f"the pool has more than {_MOST_KEYS:,} images: it is not searched for test images")
        return
    keys = _keys_of(pool, settings)
    if dist.is_main():
        write_pool_keys(path, keys)


def report_duplicates(
    run: RunFolder,
    pool_runs: Sequence[Path],
    source: Source,
    test: Indices,
    *,
    data: DataSettings,
    also: Sequence[Source] = (),
) -> None:
    """List test images whose very pixels are among those a model was trained on before, or is trained on besides.

    Every rank must call it, as `keep_pool_keys`.

    Args:
        run: where the list and the sentences go.
        pool_runs: run folders of a pretraining and of what followed it.
        source: holds the test images.
        test: int64 [N], which they are.
        data: how images are read.
        also: images of further sources to train on.
    """
    if not len(test) or not (pool_runs or also):
        return
    held_out = source.subset(test)
    pools: list[tuple[str, PoolKeys | str]]
    pools = [(_pool_words(each, pool_runs), _kept_keys(each / _POOL_KEYS)) for each in pool_runs]
    pools += [(each.location, _keys_of(each, data)) for each in also]
    # Digests are of decoded pixels, which for 16-bit files depend on what counts as white.
    levels = dist.broadcast_object(sorted({known.white_level for _, known in pools if isinstance(known, PoolKeys)}))
    sought = {level: _keys_of(held_out, data, white_level=level).pixels for level in levels}
    if not dist.is_main():
        return
    rows = list[tuple[str, str]]()
    for words, known in pools:
        if isinstance(known, str):
            run.note(
                f"the digests of {words} are not at hand{known}: it is not known whether test images are among them"
            )
            continue
        pairs = exact_duplicates(known.pixels, sought[known.white_level])
        rows += [(str(known.names[a]), held_out.names[b]) for a, b in pairs]
        run.note(_found_sentence(words, pairs, known.pixels, sought[known.white_level]))
    if rows:
        run.write_table("duplicates.csv", ["pool", "test"], rows)


def _found_sentence(words: str, pairs: Indices, pool: NDArray[np.uint64], test: NDArray[np.uint64]) -> str:
    unread_pool, unread_test = (int((~keys.any(axis=1)).sum()) for keys in (pool, test))
    if len(pairs):
        found = f"{len(pairs)} test images are also in {words}, pixel for pixel; see duplicates.csv"
    else:
        found = f"none of the {len(test) - unread_test} test images is in {words}, pixel for pixel"
    if unread_pool or unread_test:
        found += f"; {unread_test} test images and {unread_pool} images there cannot be read and were not compared"
    return found


def _keys_of(source: Source, data: DataSettings, *, white_level: int | None = None) -> PoolKeys:
    level = data.white_level if white_level is None else white_level
    digests = pixel_digests(source, workers=data.workers, white_level=level, max_pixels=data.max_pixels)
    return PoolKeys(digests, np.array(list(source.names) if dist.is_main() else [], np.str_), level)


def _pool_words(pool_run: Path, pool_runs: Sequence[Path]) -> str:
    def is_tuned(run: Path) -> bool:
        return (run / "classifier").is_dir()

    if is_tuned(pool_run):
        return f"the labelled images of {pool_run.name}"
    is_only = sum(not is_tuned(each) for each in pool_runs) == 1
    return "the pretraining pool" if is_only else f"the pretraining pool of {pool_run.name}"


def _kept_keys(path: Path) -> PoolKeys | str:
    """Rank 0's digests, or why they are not at hand; other ranks read none."""
    if not dist.is_main() or not path.is_file():
        return ""
    try:
        return read_pool_keys(path)
    except UserError as error:
        return f" ({error})"


def labels_used(
    split: LabelSplit, trained: Trained, origin: Origin, *, num_own: int, num_test: int, settings: FinetuneSettings
) -> LabelsUsed:
    """What a fine-tuning took, those of the budget apart from those it had besides.

    Args:
        split: what was trained on.
        trained: what came of it.
        origin: what it started from.
        num_own: images of the labelled source; indices past them are those of further sources.
        num_test: test images scored.
        settings: say whether the start's weights were used.
    """
    num_train = int((split.train < num_own).sum())
    return LabelsUsed(
        train=num_train,
        val=trained.num_val,
        test=num_test,
        also=len(split.train) - num_train,
        earlier=0 if settings.strategy == "scratch" else origin.num_labels,
    )


def write_damages(run: RunFolder, damages: Sequence[Damage]) -> None:
    """List the damaged images met, with what stood in for each."""
    if damages:
        run.list_damaged([(damage.name, damage.reason, damage.replacement) for damage in damages])
        run.note(f"{len(damages)} damaged images were replaced by others; see damaged.csv")


def provenance(
    objective: str, pretrained: str | None, run: RunFolder, *, steps: int, num_labels: int = 0
) -> dict[str, object]:
    """What a model card says about where the model comes from."""
    return {
        "objective": objective,
        "steps": steps,
        **({"labels trained on": num_labels} if num_labels else {}),
        "data": [f"{d.role}: {d.num_images} images, SHA-256 {d.fingerprint}" for d in run.data],
        "started from": pretrained or "random weights",
        "parents": [parent.sha256 for parent in run.parents],
        "software": f"ssl_ft {__version__}",
        "licence": "that of the images and of any weights it started from; none is granted here",
    }
