"""Rows of metrics to TensorBoard, Weights & Biases or MLflow, where asked for. Nothing is sent unless named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssl_ft import dist
from ssl_ft.errors import UserError

Track = Callable[[int, dict[str, float]], None]


def open_trackers(names: Sequence[str], run: Path) -> Track:
    """A function that hands (step, row) to every tracker named; on rank 0 only.

    Raises:
        UserError: a tracker that is not installed.
    """
    openers: dict[str, Callable[[Path], Track]] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    tracks = [openers[name](run) for name in names] if dist.is_main() else []

    def track(step: int, row: dict[str, float]) -> None:
        for each in tracks:
            each(step, row)

    return track


def _missing(name: str, package: str) -> UserError:
    return UserError(f"trackers={name} needs the package {package}; install it with `pip install {package}`")


def _tensorboard(run: Path) -> Track:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", "tensorboard") from error
    writer: Any = SummaryWriter(str(run / "tensorboard"))

    def track(step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _wandb(run: Path) -> Track:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", "wandb") from error
    session: Any = wandb.init(project="ssl_ft", name=run.name, dir=str(run))
    return lambda step, row: session.log(row, step=step)


def _mlflow(run: Path) -> Track:
    try:
        import mlflow
    except ImportError as error:
        raise _missing("mlflow", "mlflow") from error
    mlflow.start_run(run_name=run.name)
    return lambda step, row: mlflow.log_metrics(row, step=step)
