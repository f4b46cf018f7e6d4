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
        "compare": config.CompareSettings,
        "advise": config.AdviseSettings,
        "predict": config.PredictSettings,
        "bench": config.BenchSettings,
        "report": config.ReportSettings,
        "doctor": config.DoctorSettings,
        "shift": config.ShiftSettings,
        "adapt": config.AdaptSettings,
        "selftrain": config.SelftrainSettings,
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
    if stage in ("compare", "advise"):
        from pipelines import advise, compare

        return compare.main(settings) if stage == "compare" else advise.main(settings)
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
    if stage == "shift":
        from pipelines import shift

        return shift.main(settings)
    if stage == "adapt":
        from pipelines import adapt

        return adapt.main(settings)
    if stage == "selftrain":
        from pipelines import selftrain

        return selftrain.main(settings)
    if stage == "bench":
        from pipelines import bench

        return bench.main(settings)
    from pipelines import predict

    return predict.main(settings)
