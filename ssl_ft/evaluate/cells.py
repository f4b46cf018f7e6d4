"""Cells of a comparison: their keys, their files, and reading all of them. One cell is one trained classifier.

A cell that could not be trained leaves its sentence instead of its predictions, so that nobody tries it again.

A cell is a pure function of its key and the comparison's settings; who computes it when is in `claims.py` and
`build/comparing.py`. Files are npz without pickles, written whole or not at all.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError

Budget = int | float | str

# Predictions are kept as int16.
MOST_CLASSES = 2**15
# Ending of the file a cell leaves that could not be trained.
_FAILED = ".failed.json"


@dataclass(frozen=True, order=True)
class CellKey:
    """What sets one classifier apart from the others of a comparison.

    Attributes:
        encoder: name of the encoder.
        strategy: name of the strategy.
        budget: labels per class, a share, or "all".
        draw: which draw of the budget.
        seed: of everything random in training.
    """

    encoder: str
    strategy: str
    budget: Budget
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its file without ending."""
        return f"{self.encoder}--{self.strategy}--{self.budget}--draw{self.draw}--seed{self.seed}"


@dataclass(frozen=True, eq=False)
class Cell:
    """What came of one classifier.

    Attributes:
        predictions: int16 [N], class of each test image.
        confidences: float16 [N] in [0, 1], probability of that class.
        chosen: the settings chosen, as `key=value` words.
        val_loss: mean log-loss on val of the choice; None where there was nothing to choose on.
        val_accuracy: the same of accuracy.
        steps: steps of the final training; 0 for an exact solver.
        num_trained: parameters trained.
        num_labels: labels used, those to choose on included.
        seconds: of the whole cell, the choice included.
        train_seconds: of the final training alone.
        peak_memory_mb: largest memory of the process so far.
    """

    predictions: NDArray[np.int16]
    confidences: NDArray[np.float16]
    chosen: tuple[str, ...]
    val_loss: float | None
    val_accuracy: float | None
    steps: int
    num_trained: int
    num_labels: int
    seconds: float
    train_seconds: float
    peak_memory_mb: float


def all_keys(
    encoders: Sequence[str], strategies: Sequence[str], budgets: Sequence[Budget], *, draws: int, seeds: Sequence[int]
) -> list[CellKey]:
    """The cells of a comparison; "all" has one draw. Draw by draw, so that an early look has every strategy."""
    return [
        CellKey(encoder, strategy, budget, draw, seed)
        for draw in range(draws)
        for budget in budgets
        for encoder in encoders
        for strategy in strategies
        for seed in seeds
        if draw == 0 or budget != "all"
    ]


def cell_path(folder: Path, key: CellKey) -> Path:
    return folder / f"{key.name}.npz"


def write_cell(folder: Path, key: CellKey, cell: Cell) -> None:
    """Write the cell's file whole or not at all."""
    about = {k: v for k, v in asdict(cell).items() if k not in ("predictions", "confidences")}
    text = json.dumps({"key": asdict(key), **about})
    with _whole(cell_path(folder, key)) as file:
        np.savez_compressed(
            file, predictions=cell.predictions, confidences=cell.confidences, about=np.array(text, dtype=np.str_)
        )


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is written, and leaves nothing where that failed."""
    # A name of its own: should two processes do the same cell, neither may tear the other's file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def failure_path(folder: Path, key: CellKey) -> Path:
    return folder / f"{key.name}{_FAILED}"


def write_failure(folder: Path, key: CellKey, reason: str) -> None:
    """Keep why a cell could not be trained; whole or not at all."""
    with _whole(failure_path(folder, key)) as file:
        file.write(json.dumps({"key": asdict(key), "reason": reason}).encode())


def read_failure(folder: Path, key: CellKey) -> str | None:
    """Why a cell could not be trained; None where it could, or was not tried yet.

    Raises:
        UserError: the file is damaged, or another cell's.
    """
    path = failure_path(folder, key)
    try:
        about = json.loads(path.read_bytes())
        found, reason = CellKey(**about["key"]), str(about["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and the same command computes it anew") from error
    if found != key:
        raise UserError(f"{path} is the cell {found.name}, renamed; delete it, and the same command computes it anew")
    return reason


def is_over(folder: Path, key: CellKey) -> bool:
    """Whether nothing is left to compute of a cell: it is done, or failed."""
    return cell_path(folder, key).is_file() or failure_path(folder, key).is_file()


def num_over(folder: Path) -> int:
    """How many cells of a folder are done, or failed."""
    return sum(len(list(folder.glob(f"[!.]*{end}"))) for end in (".npz", _FAILED))


def read_cell(folder: Path, key: CellKey) -> Cell:
    """The cell.

    Raises:
        UserError: the file is damaged, or another cell's.
    """
    path = cell_path(folder, key)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about: dict[str, Any] = json.loads(str(arrays["about"]))
            predictions, confidences = arrays["predictions"], arrays["confidences"]
        found = CellKey(**about.pop("key"))
        cell = Cell(predictions, confidences, tuple(about.pop("chosen")), **about)
        if predictions.dtype != np.int16 or confidences.shape != predictions.shape or predictions.ndim != 1:
            raise ValueError(f"predictions of shape {predictions.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and the same command computes it anew") from error
    if found != key:
        raise UserError(f"{path} is the cell {found.name}, renamed; delete it, and the same command computes it anew")
    return cell
