"""Stage predict: label a folder of images with a classifier of any task, ours or exported, into a CSV or Parquet."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.build.predicting import Predictor, columns_of, open_predictor
from ssl_ft.config import PredictSettings
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.augmented import reading_contract
from ssl_ft.evaluate.features import read_inputs
from ssl_ft.outputs import check_place, write_rows
from ssl_ft.runlog import say

_BLOCK = 2048


def main(settings: PredictSettings) -> int:
    """Write the CSV and print its path; nothing is written where images break the model's input contract."""
    if not settings.classifier or not settings.images:
        raise UserError("predict needs a folder and a classifier: `ssl-ft predict FOLDER classifier=runs/finetune-...`")
    predictor = open_predictor(settings)
    source = open_source(settings.images)
    out = check_place(Path(settings.out), example="predictions.csv")
    columns = columns_of(predictor.task, predictor.output_names)
    if columns[-1] != predictor.output_names[-1]:
        say(f"an output is called as another column, so those of outputs get a prefix: {', '.join(columns)}")
    rows: list[list[object]] = []
    damaged: list[tuple[str, str]] = []
    wanted = reading_contract(predictor.contract, how=settings.tta)
    for start in range(0, len(source), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(source)))
        inputs = read_inputs(source, block, wanted, max_damaged_share=1.0, max_pixels=89_478_485, workers=2)
        damaged += inputs.damaged
        if not len(inputs.indices):
            continue
        outputs = predictor.predict(inputs.pixels)
        rows += [
            [source.names[index], *_cells(predictor, own)] for index, own in zip(inputs.indices, outputs, strict=True)
        ]
    if not rows:
        raise UserError(f"{settings.images}: not one of {len(source)} images can be read; nothing was written")
    if len(damaged) > settings.max_damaged_share * len(source):
        first = "; ".join(f"{name} ({reason})" for name, reason in damaged[:5])
        raise UserError(
            f"{len(damaged)} of {len(source)} images cannot be read ({first}), more than "
            f"max_damaged_share={settings.max_damaged_share}; nothing was written. Mend them, or raise the share"
        )
    for name, reason in damaged:
        say(f"left out: {name} ({reason})")
    # Shares have a scale of their own, numbers the user's.
    number_format = ".7g" if predictor.task == "regression" else ".6f"
    write_rows(out, columns, rows, number_format=number_format)
    say(f"{len(rows)} images labelled")
    print(out)
    return 0


def _cells(predictor: Predictor, outputs: NDArray[np.float32]) -> list[object]:
    """The cells of one image: its class and shares, the probability of each label, or a number for each target."""
    numbers = [float(value) for value in outputs]
    best = int(outputs.argmax())
    return [predictor.output_names[best], numbers[best], *numbers] if predictor.task == "classes" else [*numbers]
