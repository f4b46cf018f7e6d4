"""Features to judge, from a model folder and a labelled source: the encoder's, the untrained encoder's, raw pixels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.build.origins import Origin, load_origin, record_start
from ssl_ft.config import DataSettings
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import FeatureSet, compute_outputs, pixel_features, read_blocks, read_inputs
from ssl_ft.evaluate.judge import MOST_STANDARDISING, Budget, Drawn, draw_budgets
from ssl_ft.models.encoders import build_encoder
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder
from ssl_ft.seeding import derive_seed

# Decoded pixels of a block.
_BLOCK_BYTES = 64 * 2**20


def parent_data(model: Path) -> DataSettings:
    """The data settings of the run that made a model.

    Raises:
        UserError: the model does not lie in its run folder any more, or that is damaged.
    """
    manifest = model.parent / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{model} does not lie in its run folder, so its data are not known; name them with data=")
    try:
        return DataSettings.model_validate(json.loads(manifest.read_text(encoding="utf-8"))["settings"]["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{manifest} does not tell the data of {model}; name them with data=") from error


def _places(source: Source, roles: Roles, indices: NDArray[np.int64]) -> Roles:
    """The roles as places in the images that could be read.

    Raises:
        UserError: a role has no image left.
    """
    place = {int(index): number for number, index in enumerate(indices)}

    def places(role: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([place[i] for i in role.tolist() if i in place], np.int64)

    kept = Roles(train=places(roles.train), val=places(roles.val), test=places(roles.test))
    for role in ("train", "val", "test"):
        if len(getattr(roles, role)) and not len(getattr(kept, role)):
            raise UserError(f"{source.location}: not one of its {role} images can be read; mend them first")
    return kept


@dataclass(frozen=True, eq=False)
class Needed:
    """The images a judgement takes features of.

    Attributes:
        roles: indices into the source; of a large training part only what is needed.
        drawn: the draws, as indices into the source; None where all training images stay, and draws are made of those
            that can be read.
    """

    roles: Roles
    drawn: Drawn | None

    def places(self, indices: NDArray[np.int64]) -> Drawn | None:
        """The draws as places in the images that were read, int64 [N] in rising order."""
        if self.drawn is None:
            return None
        known = self.drawn.standardising
        taken = [[np.searchsorted(indices, one) for one in draws] for draws in self.drawn.taken]
        return Drawn(taken, np.searchsorted(indices, known[np.isin(known, indices)]))


def needed_images(
    source: Source,
    roles: Roles,
    data: DataSettings,
    contract: InputContract,
    *,
    budgets: Sequence[Budget],
    draws: int,
    seed: int,
) -> Needed:
    """What has to be embedded: small budgets of a large training part need their draws, and 10,000 to standardise.

    Up to 10,000 training images, and where a budget is "all", every image is needed. Labels drawn are read once to see
    that they can be.

    Raises:
        UserError: a class has too few labels, or too few that can be read.
    """
    assert source.labels is not None, "roles need labels"
    if len(roles.train) <= MOST_STANDARDISING or "all" in budgets:
        return Needed(roles, None)
    damaged, seen = np.empty(0, np.int64), np.empty(0, np.int64)
    while True:
        drawn = draw_budgets(
            source.labels, roles, budgets=budgets, draws=draws, class_names=source.class_names, seed=seed,
            damaged=damaged,
        )  # fmt: skip
        labelled = np.unique(np.concatenate([one for draw in drawn.taken for one in draw]))
        new = np.setdiff1d(labelled, seen)
        if not len(new):
            break
        read = read_inputs(
            source, new, contract, max_damaged_share=1.0, max_pixels=data.max_pixels, workers=data.workers
        )
        seen, damaged = np.union1d(seen, new), np.union1d(damaged, np.setdiff1d(new, read.indices))
    # Damaged ones stay among those to be read, so that they are listed and counted.
    train = np.union1d(drawn.needed(), damaged)
    return Needed(Roles(train=train, val=np.empty(0, np.int64), test=roles.test), drawn)


def read_test(
    source: Source, test: NDArray[np.int64], data: DataSettings, contract: InputContract, *, run: RunFolder
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Test images uint8 [N, C, size, size] and their labels int64 [N]; damaged ones are listed and left out."""
    assert source.labels is not None, "roles need labels"
    wanted, none = np.sort(test), np.empty(0, np.int64)
    inputs = read_inputs(
        source,
        wanted,
        contract,
        max_damaged_share=data.max_damaged_share,
        max_pixels=data.max_pixels,
        workers=data.workers,
    )
    run.leave_out_damaged(inputs.damaged)
    _places(source, Roles(train=none, val=none, test=wanted), inputs.indices)
    return inputs.pixels, source.labels[inputs.indices]


def feature_sets(
    origin: Origin,
    source: Source,
    roles: Roles,
    data: DataSettings,
    *,
    run: RunFolder,
    device: torch.device,
    batch_size: int,
    has_baselines: bool,
    seed: int,
) -> list[FeatureSet]:
    """The encoder's features first, then the baselines'; images are decoded in blocks, and none is kept."""
    assert source.labels is not None, "roles need labels"
    encoder, parent = load_origin(origin)
    record_start(run, origin, parent)
    card, contract = origin.card, origin.card.contract
    wanted = np.sort(np.concatenate([roles.train, roles.val, roles.test]))
    networks = {"encoder": encoder}
    if has_baselines:
        networks["untrained"] = build_encoder(card.spec, seed=derive_seed(seed, "untrained") >> 1)
    features: dict[str, list[NDArray[np.float32]]] = {name: [] for name in networks}
    if has_baselines:
        features["pixels"] = []
    read, damaged = list[NDArray[np.int64]](), list[tuple[str, str]]()
    fitting = max(1, _BLOCK_BYTES // (contract.channels * contract.size**2))
    blocks = read_blocks(
        source, wanted, contract, block=batch_size * max(1, fitting // batch_size),
        max_damaged_share=data.max_damaged_share, max_pixels=data.max_pixels, workers=data.workers,
    )  # fmt: skip
    with ProgressLine("features", total=len(wanted)) as progress:
        for block in blocks:
            damaged += block.damaged
            if not len(block.indices):
                continue
            read.append(block.indices)
            for name, network in networks.items():
                outputs = compute_outputs(network, block.pixels, contract, device=device, batch_size=batch_size)
                features[name].append(outputs)
            if has_baselines:
                features["pixels"].append(pixel_features(block.pixels))
            progress.update(sum(len(part) for part in read) + len(damaged))
    run.leave_out_damaged(damaged)
    indices = np.concatenate([np.empty(0, np.int64), *read])
    places, labels = _places(source, roles, indices), source.labels[indices]
    # One model after the other, whose parts go as soon as they are joined: never all of them twice.
    return [FeatureSet(name, np.concatenate(features.pop(name)), labels, places, indices) for name in list(features)]


def shown_images(
    source: Source, data: DataSettings, contract: InputContract
) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    """What decodes a few images of the source once more, to be looked at: indices [N] -> uint8 [N, C, size, size]."""

    def read(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return read_inputs(
            source, indices, contract, max_damaged_share=0.0, max_pixels=data.max_pixels, workers=data.workers
        ).pixels

    return read
