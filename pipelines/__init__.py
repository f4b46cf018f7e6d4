"""The stages, one thin file each: `main(settings) -> exit code`. A stage calls `ssl_ft` and leaves a run folder."""

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
    main: Callable[[Any], int]
    match stage:
        case "demo" | "run":
            from pipelines.run_all import main
        case "index":
            from pipelines.index import main
        case "doctor":
            from pipelines.doctor import main
        case "pretrain":
            from pipelines.pretrain import main
        case "probe":
            from pipelines.probe import main
        case "shift":
            from pipelines.shift import main
        case "finetune":
            from pipelines.finetune import main
        case "compare":
            from pipelines.compare import main
        case "advise":
            from pipelines.advise import main
        case "selftrain":
            from pipelines.selftrain import main
        case "adapt":
            from pipelines.adapt import main
        case "export":
            from pipelines.export import main
        case "predict":
            from pipelines.predict import main
        case "embed":
            from pipelines.embed import main
        case "neighbors":
            from pipelines.neighbors import main
        case "suggest":
            from pipelines.suggest import main
        case "report":
            from pipelines.report import main
        case "bench":
            from pipelines.bench import main
        case _:
            raise AssertionError(f"no stage {stage!r}")
    return main
