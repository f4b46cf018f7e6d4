"""What a folder of images is labelled with: a classifier of ours, or an exported file that needs no torch model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract, find_model, load_model
from ssl_ft.build.parts import choose_device
from ssl_ft.config import PredictSettings
from ssl_ft.errors import UserError
from ssl_ft.evaluate.augmented import mean_outputs, mean_over_views
from ssl_ft.export.description import NAME, read_description
from ssl_ft.export.running import open_runner


@dataclass(frozen=True, eq=False)
class Predictor:
    """A classifier ready to label.

    Attributes:
        task: "classes", "multi_label" or "regression".
        output_names: in the order of its outputs.
        contract: its input.
        predict: uint8 images as `reading_contract` says -> probabilities or numbers, float32 [N, K].
    """

    task: str
    output_names: tuple[str, ...]
    contract: InputContract
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_predictor(settings: PredictSettings) -> Predictor:
    """What `classifier=` means: a run, its model folder, or an exported file or folder.

    Raises:
        UserError: nothing of the kind is there, or it is an encoder.
    """
    path = Path(settings.classifier).expanduser()
    if path.suffix in (".onnx", ".pt2"):
        return _exported(path, settings)
    if (path / NAME).is_file():
        return _exported(path / "model.onnx", settings)
    model, card, _ = load_model(find_model(settings.classifier, kind="classifier"))
    device = choose_device(settings.device)

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return mean_outputs(
            model, pixels, card.contract, task=card.task, how=settings.tta, device=device,
            batch_size=settings.batch_size,
        )  # fmt: skip

    return Predictor(card.task, card.output_names, card.contract, predict)


def columns_of(task: str, output_names: Sequence[str]) -> list[str]:
    """Columns of the table of predictions, each name once.

    `path`, of classes `label` and `probability`, and one for each output, called as it is; where that would name a
    column twice, every output's column begins with `share_`, or of a regression with `value_`.
    """
    first = ["path", "label", "probability"] if task == "classes" else ["path"]
    prefix = ("value_" if task == "regression" else "share_") if set(first) & set(output_names) else ""
    return [*first, *(prefix + name for name in output_names)]


def _exported(file: Path, settings: PredictSettings) -> Predictor:
    if settings.device == "cuda":
        raise UserError(f"device=cuda: the exported file {file} is run on the CPU; leave device out")
    description = read_description(file.parent)
    if description.kind != "classifier":
        raise UserError(f"classifier={file} is an exported encoder, which has no classes; name a classifier")
    runner = open_runner(file, description, num_threads=torch.get_num_threads())

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return mean_over_views(
            lambda view: runner.outputs(view, batch_size=settings.batch_size), pixels, description.contract,
            task=description.task, how=settings.tta,
        )  # fmt: skip

    return Predictor(description.task, description.output_names, description.contract, predict)
