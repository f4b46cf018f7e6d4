"""The stages, one thin file each: `main(settings) -> exit code`. A stage calls `ssl_ft` and leaves a run folder."""

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
        "predict": config.PredictSettings,
        "embed": config.EmbedSettings,
        "neighbors": config.NeighborsSettings,
        "suggest": config.SuggestSettings,
        "bench": config.BenchSettings,
        "report": config.ReportSettings,
        "doctor": config.DoctorSettings,
    }
    return classes[stage]


def stage_main(stage: str, settings: Any, *, is_dry: bool) -> int:
    """Run a stage, or say what it would do. Each stage is imported only when it runs."""
    if is_dry:
        from pipelines import plan

        return plan.main(stage, settings)
    if stage == "pretrain":
        from pipelines import pretrain

        return pretrain.main(settings)
    if stage == "probe":
        from pipelines import probe

        return probe.main(settings)
    if stage == "finetune":
        from pipelines import finetune

        return finetune.main(settings)
    if stage in ("run", "demo"):
        from pipelines import run_all

        return run_all.main(settings)
    if stage == "report":
        from pipelines import report

        return report.main(settings)
    if stage == "index":
        from pipelines import index

        return index.main(settings)
    if stage == "doctor":
        from pipelines import doctor

        return doctor.main(settings)
    if stage == "bench":
        from pipelines import bench

        return bench.main(settings)
    if stage == "embed":
        from pipelines import embed

        return embed.main(settings)
    if stage == "neighbors":
        from pipelines import neighbors

        return neighbors.main(settings)
    if stage == "suggest":
        from pipelines import suggest

        return suggest.main(settings)
    from pipelines import predict

    return predict.main(settings)
