"""Where an encoder may come from: a run of ours (its encoder, or its classifier without the head), weights of timm's
hub, or a file of weights. Found and checked first, without reading weights; loaded later, whole or not at all.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
from numpy.typing import NDArray
from torch import nn

from ssl_ft.artifact import InputContract, ModelCard, file_digest, find_model, load_model, read_card
from ssl_ft.config import DataSettings, SourceSettings
from ssl_ft.data.listing import evenly_spread
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import read_inputs
from ssl_ft.models.encoders import EncoderSpec, build_encoder, family, load_pretrained
from ssl_ft.models.fit import check_input
from ssl_ft.models.hub import trained_pooling
from ssl_ft.result import Ancestor, Parent
from ssl_ft.runlog import RunFolder

_HUB = "timm:"
# Images whose mean and standard deviation stand for those of a set, where timm has none for so many channels.
_MEASURED_IMAGES = 1024
_OWN = "a finished pretrain or finetune run, timm:NAME, or a .safetensors file"


@dataclass(frozen=True, eq=False)
class Origin:
    """An encoder that was found, its weights not yet read.

    Attributes:
        location: as it is recorded: a folder, `timm:NAME` or a file.
        kind: "encoder" and "classifier" are ours; "timm" and "weights" are others'.
        card: architecture and input contract, of the encoder alone.
        folder: the model folder, where it is ours; else None.
        is_measured: whether the contract's mean and std must still be measured (`with_measured_contract`).
        notes: what a reader of a run that starts here should know.
    """

    location: str
    kind: str
    card: ModelCard
    folder: Path | None = None
    is_measured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """Labels that the model and those it started from were trained on, as far as its card tells."""
        return self.card.num_labels

    def pretrained_folder(self, *, instead: str) -> Path:
        """The folder of an encoder of ours, whose run tells what it was pretrained on and how.

        Raises:
            UserError: it is none; `instead` says what else can be done.
        """
        if self.folder is None or self.kind != "encoder":
            raise UserError(f"encoder={self.location} was not pretrained here, so no run tells of it: {instead}")
        return self.folder

    def runs(self) -> list[Path]:
        """Run folders of this model and of those it was made from, nearest first; some may have been moved."""
        if self.folder is None:
            return []
        return [self.folder.parent, *(Path(each.path).parent for each in _ancestors(self.folder) if _is_ours(each))]


def find_origin(location: str, settings: SourceSettings, *, setting: str = "encoder") -> Origin:
    """What `encoder=` means. Nothing is fetched and no weights are read.

    Args:
        location: what the person named.
        settings: what weights of others are told besides.
        setting: how messages name the setting that names the location.

    Raises:
        UserError: nothing there, no such architecture, or settings of `source` that do not belong to it.
    """
    if location.startswith(_HUB):
        return _of_hub(location, settings, setting=setting)
    if location.endswith(".safetensors"):
        return _of_file(Path(location).expanduser(), settings, setting=setting)
    if settings != SourceSettings():
        given = ", ".join(f"source.{key}" for key in sorted(settings.model_fields_set))
        raise UserError(
            f"{given}: a model of ours says itself how it is built and what it takes; source= is for "
            f"{setting}=timm:NAME and {setting}=FILE.safetensors, leave it out"
        )
    folder = find_model(location, kind=("encoder", "classifier"), setting=setting)
    card = read_card(folder)[0]
    return Origin(str(folder), card.kind, _headless(card), folder)


def _headless(card: ModelCard) -> ModelCard:
    return replace(card, kind="encoder", class_names=(), task="classes", target_names=())


def own_origin(folder: Path) -> Origin:
    """A model folder of ours as an origin.

    Raises:
        UserError: there is no model of ours.
    """
    return find_origin(str(folder), SourceSettings())


def load_origin(origin: Origin) -> tuple[nn.Module, Parent]:
    """The encoder in evaluation mode, and what to record of it. Hub weights are fetched here.

    Raises:
        UserError: weights that are damaged, do not fit to the last tensor, or cannot be fetched.
    """
    assert not origin.is_measured, "the contract is measured before weights are read"
    if origin.folder is not None:
        model, card, parent = load_whole(origin.folder)
        return model if card.kind == "encoder" else _without_head(model, card.spec), parent
    spec = origin.card.spec
    encoder = build_encoder(spec, seed=0)
    source = "timm" if origin.kind == "timm" else origin.location
    load_pretrained(encoder, spec, source=source, setting=f"encoder={origin.location}")
    if origin.kind == "weights":
        digest = file_digest(Path(origin.location))
    else:
        digest = hashlib.sha256(safetensors.torch.save(encoder.state_dict())).hexdigest()
    return encoder.eval(), Parent(path=origin.location, sha256=digest, kind=origin.kind)


def weights_at(source: str) -> str:
    """What `encoder.pretrained` names: of a pretrain run the file of its encoder's weights; else as it is.

    Raises:
        UserError: a folder without an encoder of ours.
    """
    if not source or not Path(source).expanduser().is_dir():
        return source
    return str(find_model(source, kind="encoder", setting="encoder.pretrained") / "model.safetensors")


def record_pretrained(run: RunFolder, source: str | None) -> Origin | None:
    """Keep in a pretraining the model of ours whose weights `encoder.pretrained` names; None where it is none.

    Raises:
        UserError: the weights are not those that the model's folder tells of.
    """
    file = Path(weights_at(source or "")).expanduser()
    if file.name != "model.safetensors" or not (file.parent / "config.json").is_file():
        return None
    try:
        origin = own_origin(file.parent)
    except UserError as error:
        run.note(f"what {file.parent} holds besides its weights does not tell where they come from ({error})")
        return None
    record_start(run, origin, load_origin(origin)[1])
    return origin


def load_whole(folder: Path) -> tuple[nn.Module, ModelCard, Parent]:
    """A model of ours, its head with it, in evaluation mode; its card; and what to record of it.

    Raises:
        UserError: weights that are damaged or do not fit to the last tensor.
    """
    model, card, digest = load_model(folder)
    return model, card, Parent(path=str(folder), sha256=digest, kind=card.kind, ancestors=_ancestors(folder))


def record_start(run: RunFolder, origin: Origin, parent: Parent, *, are_weights_used: bool = True) -> None:
    """Keep in a run what it started from, and say what is to be known about its weights where they are used."""
    run.parents.append(parent)
    if not are_weights_used:
        return
    for note in origin.notes:
        run.note(note)
    if origin.num_labels:
        run.note(
            f"{origin.num_labels:,} labels were used to train the model this starts from; they count beside the budget"
        )


def with_measured_contract(origin: Origin, source: Source, train: NDArray[np.int64], data: DataSettings) -> Origin:
    """The origin with mean and std of training images, where they are to be measured; else as it is."""
    if origin.folder is None:  # weights of others say nothing of 16-bit files
        contract = replace(origin.card.contract, white_level=data.white_level)
        origin = replace(origin, card=replace(origin.card, contract=contract))
    if not origin.is_measured:
        return origin
    contract = origin.card.contract
    some = train[evenly_spread(len(train), most=_MEASURED_IMAGES)]
    pixels = read_inputs(
        source, some, contract, max_damaged_share=1.0, max_pixels=data.max_pixels, workers=data.workers
    ).pixels
    if not len(pixels):
        raise UserError(f"{source.location}: not one of its train images can be read; mend them first")
    channels = [pixels[:, channel].astype(np.float64) / 255 for channel in range(contract.channels)]
    mean = tuple(round(float(values.mean()), 6) for values in channels)
    # A constant channel would be divided by 0.
    std = tuple(round(float(values.std()), 6) or 1.0 for values in channels)
    note = f"mean {list(mean)} and std {list(std)} of the input were measured on {len(pixels)} training images"
    card = replace(origin.card, contract=replace(contract, mean=mean, std=std))
    return replace(origin, card=card, is_measured=False, notes=(*origin.notes, note))


def _of_hub(location: str, settings: SourceSettings, *, setting: str) -> Origin:
    name = location.removeprefix(_HUB)
    if settings.name is not None:
        raise UserError(f"source.name={settings.name!r}: the name stands in {setting}={location} already; leave it out")
    if not name:
        raise UserError(f"{setting}={location} lacks a name: write timm:NAME, such as timm:resnet18; or give {_OWN}")
    family(name, setting=f"{setting}={location}: ")
    if not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        has = f" (it has {', '.join(known[:5])})" if known else ""
        raise UserError(f"{setting}={location}: timm has no weights of {name!r}{has}; choose another, or give {_OWN}")
    return _of_others(location, "timm", name, settings)


def _of_file(path: Path, settings: SourceSettings, *, setting: str) -> Origin:
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file; give {_OWN}")
    if settings.name is None:
        beside = path.parent / "config.json"
        ours = f" If it is a model of ours, name its folder, {path.parent}" if beside.is_file() else ""
        raise UserError(
            f"{setting}={path}: a file of weights does not say its architecture; add source.name=, any timm name, such "
            f"as source.name=resnet18.{ours}"
        )
    family(settings.name, setting="source.name=")
    return _of_others(str(path), "weights", settings.name, settings)


def _of_others(location: str, kind: str, name: str, settings: SourceSettings) -> Origin:
    """Architecture and contract as timm describes the weights of that name, single values replaced by the settings."""
    described = timm.get_pretrained_cfg(name)  # None for names that never had weights
    size = settings.size or (described.input_size[-1] if described is not None else 224)
    args = dict(settings.args)
    if family(name) == "vit" and "global_pool" not in args:
        # Weights of others keep the pooling they were trained with; ours are trained with the mean of all patches.
        args["global_pool"] = trained_pooling(name)
    spec = EncoderSpec(name, settings.channels, size, settings.stem_stride, settings.patch_size, args)
    check_input(build_encoder(spec, seed=0), spec, setting="source.name", size_setting="source.size")
    mean, std = settings.mean, settings.std
    is_known = described is not None and len(described.mean) == settings.channels
    if mean is None and described is not None and is_known:
        mean, std = tuple(described.mean), tuple(described.std)
    is_measured = mean is None or std is None
    unit = (0.0,) * settings.channels, (1.0,) * settings.channels
    contract = InputContract(size, settings.channels, *(unit if mean is None or std is None else (mean, std)))
    notes = [f"it is not known which images {location} was trained on: test images may have been among them"]
    if described is not None and described.interpolation != "bilinear":
        notes.append(f"timm resizes for {name} with a {described.interpolation} filter; here it is bilinear, as always")
    about: dict[str, object] = {"started from": location}
    return Origin(location, kind, ModelCard("encoder", spec, contract, about=about), None, is_measured, tuple(notes))


def _without_head(model: nn.Module, spec: EncoderSpec) -> nn.Module:
    """The encoder of a classifier: every tensor of it, and none of the head's."""
    encoder, weights = build_encoder(spec, seed=0), model.state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    return encoder.eval()


def _ancestors(folder: Path) -> tuple[Ancestor, ...]:
    """What the model of a run folder was made from, nearest first, as far as its run still tells."""
    try:
        told = json.loads((folder.parent / "manifest.json").read_text(encoding="utf-8"))["parents"]
        parents = [Parent.model_validate(each) for each in told]
    except (OSError, KeyError, TypeError, ValueError):
        return ()
    return tuple(
        each
        for parent in parents
        for each in (Ancestor(path=parent.path, sha256=parent.sha256, kind=parent.kind), *parent.ancestors)
    )


def _is_ours(ancestor: Ancestor) -> bool:
    return ancestor.kind in ("encoder", "classifier")
