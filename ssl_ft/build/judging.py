"""Features to judge, from a model folder and a labelled source: the encoder's, the untrained encoder's, raw pixels."""

import json
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
from ssl_ft.evaluate.features import FeatureSet, Inputs, compute_outputs, pixel_features, read_inputs
from ssl_ft.models.encoders import build_encoder
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import RunFolder
from ssl_ft.seeding import derive_seed


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


def read_roles(
    source: Source, roles: Roles, data: DataSettings, contract: InputContract, *, run: RunFolder
) -> tuple[Inputs, NDArray[np.int64], Roles]:
    """Decode every image that has a role; damaged ones are listed and leave their role.

    Returns:
        The inputs, their labels int64 [N], and the roles as places in the inputs.
    """
    assert source.labels is not None, "roles need labels"
    wanted = np.sort(np.concatenate([roles.train, roles.val, roles.test]))
    inputs = read_inputs(
        source,
        wanted,
        contract,
        max_damaged_share=data.max_damaged_share,
        max_pixels=data.max_pixels,
        workers=data.workers,
    )
    if inputs.damaged:
        run.list_damaged([(name, reason, "") for name, reason in inputs.damaged])
        run.note(f"{len(inputs.damaged)} damaged images were left out of their roles; see damaged.csv")
    place = {int(index): number for number, index in enumerate(inputs.indices)}

    def places(role: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([place[i] for i in role.tolist() if i in place], np.int64)

    kept = Roles(train=places(roles.train), val=places(roles.val), test=places(roles.test))
    for role in ("train", "val", "test"):
        if len(getattr(roles, role)) and not len(getattr(kept, role)):
            raise UserError(f"{source.location}: not one of its {role} images can be read; mend them first")
    return inputs, source.labels[inputs.indices], kept


def read_test(
    source: Source, test: NDArray[np.int64], data: DataSettings, contract: InputContract, *, run: RunFolder
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Test images uint8 [N, C, size, size] and their labels int64 [N]; damaged ones are listed and left out."""
    none = np.empty(0, np.int64)
    inputs, labels, _ = read_roles(source, Roles(train=none, val=none, test=test), data, contract, run=run)
    return inputs.pixels, labels


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
    """The encoder's features first, then the baselines'."""
    encoder, parent = load_origin(origin)
    record_start(run, origin, parent)
    card = origin.card
    inputs, labels, places = read_roles(source, roles, data, card.contract, run=run)
    encoders = {"encoder": encoder}
    if has_baselines:
        encoders["untrained"] = build_encoder(card.spec, seed=derive_seed(seed, "untrained") >> 1)
    sets = []
    for name, network in encoders.items():
        with ProgressLine(f"features of {name}", total=len(inputs.pixels)) as progress:
            features = compute_outputs(
                network,
                inputs.pixels,
                card.contract,
                device=device,
                batch_size=batch_size,
                on_progress=progress.update,
            )
        sets.append(FeatureSet(name, features, labels, places, inputs))
    if has_baselines:
        sets.append(FeatureSet("pixels", pixel_features(inputs.pixels), labels, places, inputs))
    return sets
