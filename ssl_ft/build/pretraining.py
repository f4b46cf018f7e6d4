"""Assembles a whole pretraining from settings, and the plan of it for `--dry-run`. Parts come from `build/`."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft import dist
from ssl_ft.artifact import InputContract
from ssl_ft.build.data import (
    ImageKind,
    build_contract,
    build_order,
    build_store,
    check_pool_classes,
    input_size,
    labelled_part,
    look_at,
    open_data,
    pool_of,
)
from ssl_ft.build.objectives import build_objective
from ssl_ft.build.parts import (
    build_views,
    choose_device,
    duration_in_steps,
    encoder_spec,
    new_encoder,
    pretrain_optimizer,
    pretrain_plan,
    running_average,
    view_recipe,
)
from ssl_ft.build.precision import settle_precision
from ssl_ft.compiling import compile_networks
from ssl_ft.config import PretrainSettings
from ssl_ft.data.batches import Cutting
from ssl_ft.data.permutation import Order
from ssl_ft.data.source import Source
from ssl_ft.data.store import ImageStore
from ssl_ft.errors import UserError
from ssl_ft.evaluate.online import Watcher
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.models.fit import check_input, stride_note
from ssl_ft.pretraining import Pretraining, steps_in
from ssl_ft.processor import faster_precision
from ssl_ft.runlog import RunFolder, write_text
from ssl_ft.schedules import parse_duration
from ssl_ft.sharded import shard

# Views of each image that a step takes, where it takes more than one.
_NUM_VIEWS = {"simclr": 2, "dcl": 2, "joint": 2}


@dataclass(frozen=True, eq=False)
class Pool:
    """What pretraining reads.

    Attributes:
        source: all of the data, test included.
        pool: the part pretrained on.
        test: int64, the source's images that are held out; empty where nothing is.
        kind: what its images are like.
        channels: what they are brought to.
        size: side of the input.
        order: in which the pool is read.
    """

    source: Source
    pool: Source
    test: NDArray[np.int64]
    kind: ImageKind
    channels: int
    size: int
    order: Order


def open_pool(settings: PretrainSettings) -> Pool:
    """Open the data and look at a few images.

    Raises:
        UserError: nothing readable there, fewer images than one batch, or no labels where they are to be trained on.
    """
    source = open_data(settings.data)
    if settings.objective == "supervised":
        source = labelled_part(source)
    pool, test = pool_of(source, settings.data)
    if settings.objective == "supervised":
        check_pool_classes(pool)
    if len(pool) < settings.batch_size:
        raise UserError(
            f"batch_size={settings.batch_size} is larger than the pool: {source.location} has {len(pool)} images to "
            "pretrain on; lower batch_size"
        )
    kind = look_at(pool)
    channels = settings.data.channels or kind.channels
    order = build_order(pool, settings.data)
    return Pool(source, pool, test, kind, channels, input_size(kind, settings.size), order)


def num_labels(settings: PretrainSettings, data: Pool) -> int:
    """Labels that training looks at: those of the whole pool, or none."""
    return len(data.pool) if settings.objective == "supervised" else 0


def assemble(
    settings: PretrainSettings, data: Pool, run: RunFolder, *, are_labels_watched: bool = True
) -> tuple[Pretraining, EncoderSpec, InputContract]:
    """Build everything; the number of steps is fixed here, once for all resumptions.

    Args:
        settings: of the stage.
        data: what is pretrained on.
        run: where it is written.
        are_labels_watched: whether progress is also watched by labels, where the pool has any.
    """
    if settings.batch_size % (dist.world_size() * settings.optim.accumulate):
        raise UserError(
            f"batch_size={settings.batch_size} must be a multiple of ranks x accumulate = "
            f"{dist.world_size() * settings.optim.accumulate}"
        )
    device = choose_device(settings.device)
    settings = settle_precision(settings, run, device=device)
    store = build_store(
        data.pool,
        settings.data,
        kind=data.kind,
        channels=data.channels,
        size=max(data.size, settings.views.size or 0),
        seed=settings.seed,
        run=run.path if dist.world_size() == 1 else run.path / f"cache-{dist.rank()}",
        is_class_kept=settings.objective == "supervised",
    )
    contract = build_contract(store, size=data.size, seed=settings.seed)
    spec = encoder_spec(settings.encoder, channels=data.channels, size=data.size)
    encoder, sentence = new_encoder(settings.encoder, spec, seed=settings.seed)
    run.note(sentence)
    if settings.views.size is not None:
        check_input(encoder, replace(spec, size=settings.views.size))
    if (warning := stride_note(encoder, spec)) is not None:
        run.note(warning)
    views = build_views(settings, contract)
    labels = None if data.pool.labels is None else torch.from_numpy(data.pool.labels)
    objective = build_objective(settings, encoder, views, device, labels=labels)
    hollow = shard(objective, encoder, device) if settings.sharding == "fsdp" else None
    if hollow is not None and settings.objective == "joint":
        run.note("sharding=fsdp: how far the gradients of the two terms agree is not measured")
    steps = duration_in_steps(settings.duration, num_images=len(store), batch_size=settings.batch_size)
    work = Pretraining(
        objective=objective,
        optimizer=pretrain_optimizer(settings, objective),
        average=running_average(settings, objective.encoder),  # type: ignore[arg-type]
        store=store,
        watcher=build_watcher(settings, store, contract, are_labels_watched=are_labels_watched),
        plan=pretrain_plan(settings, num_steps=steps or 1, num_images=len(store)),
        batch_size=settings.batch_size,
        device=device,
        seed=settings.seed,
        workers=settings.data.workers,
        is_masked_input=settings.objective == "masked"
        or (settings.objective == "joint" and settings.joint.form == "shared"),
        order=data.order,
        cutting=None if store.is_decoded else Cutting(views.recipe, _NUM_VIEWS.get(settings.objective, 1)),
        hollow=hollow,
    )
    if settings.compile != "none":
        run.note(_compile(settings, work))
    if steps is None:
        steps = _remembered(run.path / "steps.txt", settings, work)
        plan = pretrain_plan(settings, num_steps=steps, num_images=len(store))
        work = replace(work, plan=plan)
    return work, spec, contract


def _compile(settings: PretrainSettings, work: Pretraining) -> str:
    batch = next(work.stream(start_step=0, num_steps=1)).to(work.device)
    return compile_networks(
        work.objective.train(),
        batch,
        is_graphed=settings.compile == "cudagraphs",
        autocast=work.plan.autocast,
        accumulate=work.plan.accumulate,
    )


def _remembered(path: Path, settings: PretrainSettings, work: Pretraining) -> int:
    """Steps that fit into the minutes, measured when the run first starts and kept beside it from then on."""
    known = None
    if dist.is_main() and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if not text.isdecimal():
            raise UserError(f"{path} must hold a number of steps, it holds {text[:40]!r}; start anew with another out=")
        known = int(text)
    known = dist.broadcast_object(known)
    if known is None:
        known = steps_in(parse_duration(settings.duration)[0], work)
        if dist.is_main():
            write_text(path, f"{known}\n")
    return int(known)


def build_watcher(
    settings: PretrainSettings, store: ImageStore, contract: InputContract, *, are_labels_watched: bool = True
) -> Watcher:
    """The watcher over an evenly spread part of the pool; without labels it looks for collapse alone."""
    indices = torch.from_numpy(store.source.sample(settings.eval_images))
    images, _ = store.fetch(indices)
    if images.shape[2] != contract.size:
        resized = torch.nn.functional.interpolate(
            images.float(), size=contract.size, mode="bilinear", antialias=True, align_corners=False
        )
        images = resized.round().clamp(0, 255).to(torch.uint8)
    labels = None
    if are_labels_watched and store.source.labels is not None:
        labels = torch.from_numpy(store.source.labels[indices.numpy()])
    return Watcher(
        images,
        labels,
        contract,
        num_neighbours=20,
        batch_size=settings.batch_size,
        dtype=torch.float64 if settings.precision == "float64" else torch.float32,
    )


def training_memory_mb(num_parameters: int, *, batch_size: int, channels: int, size: int, store_mb: float) -> float:
    """A rough upper estimate of a rank's memory in MiB: libraries, pool, weights with optimizer, activations."""
    # Four float32 copies of the weights; activations of small convnets measured near 60 times the input of both views.
    activations = 2 * batch_size * channels * size * size * 4 * 60 / 2**20
    return 450 + store_mb + 16 * num_parameters / 2**20 + activations


def plan_pretraining(settings: PretrainSettings) -> list[str]:
    """What would be trained on what for how long, in sentences."""
    data = open_pool(settings)
    steps = duration_in_steps(settings.duration, num_images=len(data.pool), batch_size=settings.batch_size)
    spec = encoder_spec(settings.encoder, channels=data.channels, size=data.size)
    encoder = build_encoder(spec, seed=0)
    check_input(encoder, spec)
    parameters = sum(p.numel() for p in encoder.parameters())
    share = settings.batch_size // settings.num_ranks
    store_mb = len(data.pool) * data.channels * data.kind.short_side**2 / 2**20
    kept_mb = store_mb if store_mb <= settings.data.cache_mb else 0
    memory = training_memory_mb(parameters, batch_size=share, channels=data.channels, size=data.size, store_mb=kept_mb)
    per_epoch = len(data.pool) // settings.batch_size
    spelled = (
        f"{steps} steps ({steps / per_epoch:.1f} epochs)" if steps else f"{settings.duration}, measured at the start"
    )
    return [
        f"pool: {len(data.pool)} of {len(data.source)} images at {data.source.location} ({data.source.kind}), "
        f"{data.channels} channels, input {data.size} x {data.size}",
        f"encoder: {settings.encoder.name}, {parameters:,} parameters",
        f"views: {view_recipe(settings.views, size=data.size, channels=data.channels)}",
        f"{spelled} of {settings.batch_size} images, {share} on each of {settings.num_ranks} ranks",
        *([f"precision: {faster_precision(choose_device(settings.device))}"] if settings.precision == "auto" else []),
        f"memory: about {memory:.0f} MB a rank",
    ]
