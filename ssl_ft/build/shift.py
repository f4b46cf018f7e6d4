"""From settings to what the measurement of a shift takes: images of pool and target, and features of both.

The tests themselves are in `ssl_ft/evaluate/`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract, find_model, load_model
from ssl_ft.build.data import limited, open_data, pool_of
from ssl_ft.build.judging import parent_data
from ssl_ft.config import DataSettings, ShiftSettings
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.contract import Account, take_account
from ssl_ft.evaluate.features import compute_outputs, pixel_features
from ssl_ft.evaluate.shift import image_statistics
from ssl_ft.evaluate.two_sample import FEWEST_IMAGES
from ssl_ft.progress import ProgressLine
from ssl_ft.result import Parent
from ssl_ft.runlog import RunFolder, default_folder


@dataclass(frozen=True, eq=False)
class Sides:
    """Pool and target: settings, sources, and the parts whose images may be looked at (test images never)."""

    pool_data: DataSettings
    target_data: DataSettings
    pool: Source
    target: Source


@dataclass(frozen=True, eq=False)
class Measured:
    """What is compared.

    Attributes:
        spaces: kind of features -> float [N, D], the pool's images first.
        is_target: bool [N].
        pool_statistics: float64 [A, K] of the pool's images.
        target_statistics: float64 [B, K] of the target's.
        pool: how the pool's images meet the contract.
        target: how the target's do.
        contract: the encoder's input.
    """

    spaces: dict[str, NDArray[np.floating]]
    is_target: NDArray[np.bool_]
    pool_statistics: NDArray[np.float64]
    target_statistics: NDArray[np.float64]
    pool: Account
    target: Account
    contract: InputContract


def open_sides(settings: ShiftSettings, model: Path) -> Sides:
    """Open pool and target.

    Raises:
        UserError: no target named, or too few images on a side.
    """
    if settings.data is None:
        raise UserError("data= is missing: name the target, the images you mean to use the encoder on")
    pool_data = settings.pool or parent_data(model)
    sides = []
    for name, data in (("pool", pool_data), ("data", settings.data)):
        part, _ = pool_of(open_data(data), data)
        if len(part) < FEWEST_IMAGES:
            raise UserError(
                f"{name}={part.location} has {len(part)} images to compare, test images left out; a comparison needs "
                f"{FEWEST_IMAGES} or more on each side"
            )
        sides.append(part)
    return Sides(pool_data, settings.data, *sides)


def plan_shift(settings: ShiftSettings) -> list[str]:
    """What would be compared, in sentences."""
    model = find_model(settings.encoder, kind="encoder")
    sides = open_sides(settings, model)
    return [
        f"encoder: {model}",
        f"up to {settings.images} of {len(sides.pool)} pool images and of {len(sides.target)} target images; test "
        "images are not looked at",
    ]


def read_sides(settings: ShiftSettings, sides: Sides, model: Path, *, run: RunFolder, device: torch.device) -> Measured:
    """Read a sample of each side as the encoder takes it, and compute features of both.

    Raises:
        UserError: too few images that the encoder takes.
    """
    encoder, card, digest = load_model(model)
    run.parents.append(Parent(path=str(model), sha256=digest, kind=card.kind))
    pool = _account(sides.pool, sides.pool_data, settings, card.contract, whose="pool")
    target = _account(sides.target, sides.target_data, settings, card.contract, whose="target")
    run.list_damaged([(name, reason, "") for one in (pool, target) for name, reason in one.damaged + one.refused])
    pixels = np.concatenate([pool.pixels, target.pixels])
    statistics = image_statistics(pixels)
    spaces: dict[str, NDArray[np.floating]] = {
        "encoder": _features(encoder, pixels, card.contract, device=device, batch_size=settings.batch_size),
        "pixels": pixel_features(pixels),
        # Statistics have scales of their own, which pool and target together give.
        "statistics": statistics / np.maximum(statistics.std(axis=0), 1e-9),
    }
    if not np.isfinite(spaces["encoder"]).all():
        raise UserError(f"{model}: its features of some images are not finite numbers; use another checkpoint")
    is_target = np.arange(len(pixels)) >= len(pool.pixels)
    return Measured(spaces, is_target, statistics[~is_target], statistics[is_target], pool, target, card.contract)


def _account(
    source: Source, data: DataSettings, settings: ShiftSettings, contract: InputContract, *, whose: str
) -> Account:
    sample = limited(
        np.arange(len(source)), data.model_copy(update={"limit": settings.images, "split_seed": settings.seed})
    )
    account = take_account(source, sample, contract, max_pixels=data.max_pixels, workers=data.workers)
    if len(account.pixels) < FEWEST_IMAGES:
        raise UserError(". ".join(account.sentences(contract, whose=whose)) + f". {FEWEST_IMAGES} or more are needed")
    return account


def _features(
    encoder: nn.Module, pixels: NDArray[np.uint8], contract: InputContract, *, device: torch.device, batch_size: int
) -> NDArray[np.float32]:
    with ProgressLine("features", total=len(pixels)) as progress:
        return compute_outputs(
            encoder, pixels, contract, device=device, batch_size=batch_size, on_progress=progress.update
        )


def open_shift_run(settings: ShiftSettings, sides: Sides) -> RunFolder:
    """The run folder, its settings with the pool resolved."""
    plain = settings.model_dump(mode="json") | {"pool": sides.pool_data.model_dump(mode="json")}
    default = default_folder("shift", Path(sides.target_data.path).name, plain)
    return RunFolder(Path(settings.out) if settings.out else default, stage="shift", settings=plain)
