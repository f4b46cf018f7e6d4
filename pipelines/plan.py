"""`--dry-run`: the resolved settings and what the stage would do. Writes nothing."""

from pathlib import Path
from typing import Any

import yaml

from ssl_ft import config
from ssl_ft.build.cluster import batch_script
from ssl_ft.build.comparison_work import plan_comparison
from ssl_ft.build.compress_plan import plan_compression
from ssl_ft.build.continuing import plan_adaptation
from ssl_ft.build.exporting import plan_export
from ssl_ft.build.packing import plan_index
from ssl_ft.build.pretraining import plan_pretraining
from ssl_ft.build.shift import plan_shift
from ssl_ft.build.suggesting import plan_suggestions
from ssl_ft.build.tuning import plan_tuning
from ssl_ft.handover import plan_labelled, pretrain_path


def main(stage: str, settings: Any) -> int:
    """Print settings and plan."""
    lines = plan_lines(settings)
    print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    for line in lines:
        print(f"# {line}")
    if isinstance(settings, config.PretrainSettings) and settings.slurm is not None:
        run = Path.cwd() / pretrain_path(settings)
        print(f"\n{batch_script(settings.slurm, run=run, folder=Path.cwd())}")
    print(f"# {stage}: nothing was written")
    return 0


def plan_lines(settings: Any) -> list[str]:
    """The plan in sentences; data are looked at, nothing is decoded in full."""
    match settings:
        case config.RunSettings():
            return [
                *plan_lines(settings.pretrain),
                f"then probe, finetune by strategy={settings.finetune.strategy} and from scratch, and report",
            ]
        case config.IndexSettings():
            return plan_index(settings)
        case config.PretrainSettings():
            return plan_pretraining(settings)
        case config.ShiftSettings():
            return plan_shift(settings)
        case config.AdaptSettings():
            return plan_adaptation(settings)
        case config.ProbeSettings() | config.FinetuneSettings():
            return plan_labelled(settings)
        case config.SuggestSettings():
            return plan_suggestions(settings)
        case config.CompressSettings():
            return plan_compression(settings)
        case config.ExportSettings():
            return plan_export(settings)
        case config.CompareSettings():
            return plan_comparison(settings)
        case config.TuneSettings():
            return plan_tuning(settings)
    return []
