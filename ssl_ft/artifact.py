"""The model a stage hands over: a folder with weights, one JSON that explains them, and a card in words.

`save_model` and `load_model` serve encoders and classifiers alike; a classifier is the same timm module with its
own head. Checkpoints for resuming are another thing (`checkpoint.py`).
"""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_ft.errors import UserError, short_path, system_sentence
from ssl_ft.models.cuts import CUT_LINES
from ssl_ft.models.encoders import EncoderSpec, build_encoder, num_features, stem_edits
from ssl_ft.models.timm_model import as_timm

_FORMAT = 1
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"
# What the outputs of a classifier mean, by its task.
_OUTPUTS = {
    "classes": "A logit for each class; `model(x).softmax(1)` gives shares that sum to 1",
    "multi_label": "A logit for each label; `model(x).sigmoid()` gives the probability of each by itself",
    "regression": "A number for each target, in the unit it had in the training data",
}


@dataclass(frozen=True)
class InputContract:
    """What the model takes. Pixels are uint8 over 255, then (x − mean) / std.

    Attributes:
        size: side in pixels; the short side is resized to it, then the centre is cut out.
        channels: number of channels.
        mean: of each channel in [0, 1].
        std: of each channel.
        white_level: value of 16-bit files that means white.
        interpolation: filter of the resize, antialiased.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white_level: int = 65535
    interpolation: str = "bilinear"

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """The contract that a file tells; whether it can be one is for the file's reader to see."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        return cls(**values)

    def check(self, images_BCHW: Tensor) -> None:
        """Refuse a batch that breaks the contract.

        Args:
            images_BCHW: uint8 [B, C, size, size].

        Raises:
            UserError: another dtype, number of channels or size.
        """
        wanted = f"this model takes uint8 [images, {self.channels}, {self.size}, {self.size}] with values 0 to 255"
        if images_BCHW.dtype != torch.uint8:
            raise UserError(f"{wanted}; got {images_BCHW.dtype}. Multiply values in [0, 1] by 255, round and cast")
        if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != (self.channels, self.size, self.size):
            raise UserError(f"{wanted}; got shape {tuple(images_BCHW.shape)}. Resize and convert the channels first")

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """The encoder's float32 input from checked uint8 images.

        Raises:
            UserError: the images break the contract.
        """
        self.check(images_BCHW)
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=images_BCHW.device).view(shape) for v in (self.mean, self.std))
        return (images_BCHW.float() / 255 - mean) / std


@dataclass(frozen=True)
class ModelCard:
    """All that `config.json` says beside the weights.

    Attributes:
        kind: "encoder" or "classifier".
        spec: the architecture.
        contract: its input.
        class_names: of a classifier of classes, in the order of its outputs.
        about: objective, data, versions, parent, licence, measured results: plain JSON values.
        task: what a classifier's outputs are: "classes" (logits of shares), "multi_label" (a logit each) or
            "regression" (numbers in the user's units).
        target_names: of the outputs for other tasks than classes.
    """

    kind: str
    spec: EncoderSpec
    contract: InputContract
    class_names: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    task: str = "classes"
    target_names: tuple[str, ...] = ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of a classifier, what each of its outputs is called."""
        return self.class_names or self.target_names

    @property
    def num_labels(self) -> int:
        """Labels that the model and those it started from were trained on, as far as is told."""
        told = self.about.get("labels trained on", 0)
        return told if isinstance(told, int) else 0


def save_model(folder: Path, model: nn.Module, card: ModelCard) -> str:
    """Write the model into `folder`, whole or not at all.

    Returns:
        The SHA-256 of the weights file, by which children name this model.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        weights = {
            k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()
        }
        save_file({k: v.float() if v.dtype == torch.float64 else v for k, v in weights.items()}, partial / _WEIGHTS)
        digest = file_digest(partial / _WEIGHTS)
        config = json.dumps(_to_json(card, model, digest), indent=1, ensure_ascii=False) + "\n"
        (partial / _CONFIG).write_text(config, encoding="utf-8")
        (partial / _CARD).write_text(_card_text(card, model, digest), encoding="utf-8")
        # safetensors lets its owner alone read a file; a model is there to be handed on.
        shutil.copymode(partial / _CONFIG, partial / _WEIGHTS)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return digest


def load_model(folder: Path) -> tuple[nn.Module, ModelCard, str]:
    """The model in evaluation mode, its card, and the SHA-256 of its weights.

    Raises:
        UserError: no such folder, a foreign or damaged config, or weights that are not those the config names.
    """
    card, digest = read_card(folder)
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} holds no {_WEIGHTS}; the model is incomplete, write it again")
    if file_digest(weights) != digest:
        raise UserError(
            f"{weights} is not the file that {_CONFIG} was written for (its SHA-256 differs): it was changed or "
            "damaged. Take it from its source again"
        )
    model = build_encoder(card.spec, seed=0)
    if card.output_names:
        as_timm(model).reset_classifier(len(card.output_names))
    _fill(model, weights, name=card.spec.name)
    return model.eval(), card, digest


def _fill(model: nn.Module, path: Path, *, name: str) -> None:
    """Load all weights or refuse, with the tensors that do not fit."""
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error}); take the model from its source again") from error
    wanted = model.state_dict()
    misfits = sorted(k for k in wanted.keys() | given.keys() if not _same_shape(wanted.get(k), given.get(k)))
    if misfits:
        raise UserError(
            f"{path} does not hold the weights of {name!r}: {len(misfits)} tensors are missing, left over or of "
            f"another shape (the first: {', '.join(misfits[:3])}); take the model from its source again"
        )
    model.load_state_dict(given)


def _same_shape(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def read_card(folder: Path) -> tuple[ModelCard, str]:
    """The card of the model in `folder` and the SHA-256 its weights must have.

    Raises:
        UserError: no model there, or a config that this version did not write.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no model of ours: there is no {_CONFIG} in it")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise UserError(f"{path} has format {raw['format']!r}; this version of ssl_ft reads format {_FORMAT}")
        contract = InputContract.from_json(raw["contract"])
        spec, names = EncoderSpec.from_json(raw["spec"]), tuple(raw["class_names"])
        # Models from before there were other tasks name none.
        task, targets = raw.get("task", "classes"), tuple(raw.get("target_names", ()))
        card = ModelCard(raw["kind"], spec, contract, names, raw["about"], task, targets)
        seal, digest = raw.get("seal"), str(raw["sha256"])
        is_sealed = seal == _seal(raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is not a model description of ours ({why}); name another model") from error
    problem = _card_problem(card) or (
        "" if is_sealed else "it was edited after the model was written" if seal else "it has lost its seal"
    )
    if problem:
        raise UserError(f"{path} cannot be trusted: {problem}. Take the model from its source again")
    return card, digest


def find_model(location: str, *, kind: str | tuple[str, ...], setting: str = "") -> Path:
    """The model folder that a path means: itself, or the `encoder`/`classifier` folder of a run.

    Args:
        location: what the user named.
        kind: "encoder", "classifier", or both where either serves; the first names the setting.
        setting: its name, where it is another.

    Raises:
        UserError: neither is there, or a model of another kind.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    kind, stages = kinds[0], {"encoder": "pretrain", "classifier": "finetune"}
    stage, setting = stages[kind], setting or kind
    wanted = f"give a finished {stage} run, or the folder {kind!r} in it"
    if len(kinds) > 1:
        wanted += "; or those of a finetune run, timm:NAME, or a .safetensors file"
    if not location:
        raise UserError(f"{setting}= is missing: {wanted}, such as {setting}=runs/{stage}-...")
    path = Path(location).expanduser()
    try:
        places = (path, *(path / each for each in kinds))
        folder = next((each for each in places if (each / _CONFIG).is_file()), None)
        is_there = path.exists()
    except OSError as error:
        raise UserError(f"{setting}={short_path(location)}: {system_sentence(error) or error}") from error
    if folder is None:
        what = f"holds no {kind}" if is_there else "is not there"
        if kind == "encoder" and (path / "checkpoints").is_dir() and not (path / "result.json").is_file():
            what += " yet: its run has not ended, the same command goes on with it"
        raise UserError(f"{setting}={location} {what}; {wanted}")
    found = read_card(folder)[0].kind
    if found not in kinds:
        raise UserError(f"{setting}={location} holds the model kind {found!r}, not {kind!r}; {wanted}")
    return folder


def _card_problem(card: Any) -> str:  # Any: it was read from a file
    """What contradicts itself in a card, in words; empty where nothing does."""
    contract, spec = card.contract, card.spec
    numbers = (contract.size, contract.channels, contract.white_level, spec.size, spec.channels)
    scales = (contract.mean, contract.std)
    if card.kind not in ("encoder", "classifier"):
        return f"kind {card.kind!r} is neither encoder nor classifier"
    if not isinstance(spec.name, str) or not isinstance(spec.args, dict) or not isinstance(card.about, dict):
        return "the architecture's name is no text, or its arguments or `about` are no mapping"
    if any(type(number) is not int or number < 1 for number in numbers):
        return "sizes, channels and white_level must be whole numbers of 1 or more"
    if contract.channels != spec.channels or any(
        not isinstance(scale, tuple) or len(scale) != spec.channels for scale in scales
    ):
        return "the contract and the architecture differ in their number of channels"
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for scale in scales for x in scale):
        return "mean and std must be finite numbers"
    if min(contract.std) <= 0 or contract.interpolation != "bilinear":
        return "std must be positive and interpolation bilinear"
    for key in ("class_names", "target_names"):
        names = getattr(card, key)
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            return f"{key} must be distinct texts"
    if card.task not in _OUTPUTS:
        return f"task {card.task!r} is none of {', '.join(_OUTPUTS)}"
    if bool(card.output_names) != (card.kind == "classifier"):
        return "a classifier has class names, an encoder none"
    is_consistent = not (card.target_names if card.task == "classes" else card.class_names)
    return "" if is_consistent else "task=classes has class_names, other tasks have target_names"


def _seal(config: dict[str, Any]) -> str:
    """SHA-256 of the parts of a config that decide what the model computes; `about` may be added to by hand."""
    parts = {key: config[key] for key in ("format", "kind", "spec", "contract", "class_names", "sha256")}
    parts |= {key: config[key] for key in ("task", "target_names") if key in config}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(card: ModelCard, model: nn.Module, digest: str) -> dict[str, Any]:
    config = {
        "format": _FORMAT,
        "kind": card.kind,
        "architecture": card.spec.name,
        "num_features": num_features(model),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "spec": card.spec.to_json(),
        "stem_edits": stem_edits(card.spec),
        "contract": asdict(card.contract),
        "class_names": list(card.class_names),
        **({"task": card.task, "target_names": list(card.target_names)} if card.kind == "classifier" else {}),
        "about": card.about,
        "sha256": digest,
    }
    return {**config, "seal": _seal(json.loads(json.dumps(config)))}


def _card_text(card: ModelCard, model: nn.Module, digest: str) -> str:
    """The card: what it is, and lines that load it with timm alone."""
    num_outputs, is_cut = len(card.output_names), card.spec.cut is not None
    # A cut is that of the encoder; the head comes after it, as wide as what is left.
    args = {**card.spec.timm_args(), "num_classes": 0 if is_cut else num_outputs}
    contract = card.contract
    about = "\n".join(f"- {key}: {value}" for key, value in card.about.items())
    lines = [*stem_edits(card.spec), *(CUT_LINES if is_cut else ())]
    lines += [f"model.reset_classifier({num_outputs})"] if is_cut and num_outputs else []
    edits = "".join(f"{line}\n" for line in lines)
    imports = "import json\n\nimport timm" if is_cut else "import timm"
    narrower = " Some of its layers are narrower than timm builds them." if is_cut else ""
    names = ", ".join(card.output_names)
    classes = f"\n## Output\n\n{_OUTPUTS[card.task]}, in this order: {names}\n" if names else ""
    return f"""# {card.spec.name}, {card.kind}

{sum(p.numel() for p in model.parameters()):,} parameters, {num_features(model)} features.{narrower}
Weights: `{_WEIGHTS}` (SHA-256 `{digest}`); everything about them: `{_CONFIG}`.

## Use it

With timm and safetensors alone:

```python
{imports}
import torch
from safetensors.torch import load_file

model = timm.create_model({card.spec.name!r}, **{args!r})
{edits}model.load_state_dict(load_file("{_WEIGHTS}"))
model.eval()
```

## Input

RGB or grey images as uint8, {contract.channels} channel(s): short side resized to {contract.size} pixels
({contract.interpolation}, antialiased), centre {contract.size} x {contract.size} cut out, divided by 255, then
`(x - mean) / std` with mean {list(contract.mean)} and std {list(contract.std)}.
{classes}
## Where it comes from

{about}
"""
