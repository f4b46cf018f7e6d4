"""`--dry-run`: the resolved settings and what the stage would do. Writes nothing."""

from pathlib import Path
from typing import Any

import yaml

from ssl_ft.build.cluster import batch_script
from ssl_ft.build.parts import duration_in_steps, encoder_spec, view_recipe
from ssl_ft.build.pretraining import open_pool, training_memory_mb
from ssl_ft.config import FinetuneSettings, PretrainSettings, ProbeSettings, RunSettings
from ssl_ft.data.source import Source
from ssl_ft.handover import open_labelled, pretrain_path
from ssl_ft.models.encoders import build_encoder
from ssl_ft.models.fit import check_input


def main(stage: str, settings: Any) -> int:
    """Print settings and plan."""
    lines = plan_lines(settings)
    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    for line in lines:
        print(f"# {line}")
    if isinstance(settings, PretrainSettings) and settings.slurm is not None:
        run = Path.cwd() / pretrain_path(settings)
        print(f"\n{batch_script(settings.slurm, run=run, folder=Path.cwd())}")
    print(f"# {stage}: nothing was written")
    return 0


def plan_lines(settings: Any) -> list[str]:
    """The plan in sentences; data are looked at, nothing is decoded in full."""
    if isinstance(settings, RunSettings):
        return [
            *plan_lines(settings.pretrain),
            f"then probe, finetune by strategy={settings.finetune.strategy} and from scratch, and report",
        ]
    if isinstance(settings, PretrainSettings):
        return _pretrain_lines(settings)
    if isinstance(settings, (ProbeSettings, FinetuneSettings)):
        labelled = open_labelled(settings)
        source, roles = labelled.source, labelled.roles
        return [
            f"encoder: {labelled.model}",
            f"{source.location}: {len(roles.train)} train, {len(roles.val)} val, {len(roles.test)} test images with "
            f"{_labels_of(source)}; test is scored once a model",
        ]
    return []


def _labels_of(source: Source) -> str:
    if source.task == "classes":
        return f"labels of {len(source.class_names)} classes"
    return f"targets ({source.task}) {', '.join(source.target_names)}"


def _pretrain_lines(settings: PretrainSettings) -> list[str]:
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
        f"memory: about {memory:.0f} MB a rank",
    ]
