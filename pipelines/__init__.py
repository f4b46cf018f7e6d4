"""The stages, one thin file each: `main(settings) -> exit code`. A stage calls `ssl_ft` and leaves a run folder."""

import importlib
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel


def stage_settings(stage: str) -> type[BaseModel]:
    """The settings class of a stage."""
    from ssl_ft import config

    classes: dict[str, type[BaseModel]] = {
        "demo": config.RunSettings,
        "run": config.RunSettings,
        "index": config.IndexSettings,
        "pretrain": config.PretrainSettings,
        "probe": config.ProbeSettings,
        "finetune": config.FinetuneSettings,
        "compare": config.CompareSettings,
        "advise": config.AdviseSettings,
        "export": config.ExportSettings,
        "predict": config.PredictSettings,
        "embed": config.EmbedSettings,
        "neighbors": config.NeighborsSettings,
        "suggest": config.SuggestSettings,
        "bench": config.BenchSettings,
        "report": config.ReportSettings,
        "doctor": config.DoctorSettings,
        "shift": config.ShiftSettings,
        "adapt": config.AdaptSettings,
        "selftrain": config.SelftrainSettings,
        "compress": config.CompressSettings,
        "tune": config.TuneSettings,
    }
    return classes[stage]


def stage_main(stage: str, settings: Any, *, is_dry: bool) -> int:
    """Run a stage, or say what it would do."""
    if is_dry:
        from pipelines import plan

        return plan.main(stage, settings)
    return _main_of(stage)(settings)


def _main_of(stage: str) -> Callable[[Any], int]:
    """A stage's function; each is imported only when it runs."""
    module = "run_all" if stage in ("demo", "run") else stage
    main: Callable[[Any], int] = importlib.import_module(f"pipelines.{module}").main
    return main
