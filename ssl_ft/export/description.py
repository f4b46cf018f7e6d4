"""`model.json`: what an exported folder says of its files, for programs that know nothing of this package.

Written beside `model.onnx` and read again before that is run. Running is in `running.py`.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssl_ft.artifact import InputContract, ModelCard
from ssl_ft.errors import UserError

NAME = "model.json"
_FORMAT = 1
_TASKS = ("classes", "multi_label", "regression")
# What is to be done with an image file before the model sees it, each step exactly.
_STEPS = (
    "decode and turn upright by the EXIF orientation; transparent images are laid over white",
    "bring to 8 bits (whole numbers of 16 bits: times 255 / {white_level}, rounded) and {channels} channel(s): grey is "
    "repeated, colour becomes grey by ITU-R 601 luma",
    "resize the whole image with Pillow's bilinear filter: the short side to {size} pixels, the long side to "
    "int({size} * long / short)",
    "cut out {size} x {size} pixels from left = round((width - {size}) / 2), top = round((height - {size}) / 2)",
)


@dataclass(frozen=True)
class Description:
    """An exported model in words and numbers.

    Attributes:
        kind: "classifier" or "encoder".
        task: of a classifier: "classes", "multi_label" or "regression".
        output_names: of a classifier, in the order of its outputs.
        contract: the images it takes.
        preprocess: "outside": the files take float32 images already normalised; "inside": uint8 images.
        layout: "nchw" or "nhwc", the order of the input's dimensions; nhwc only where preprocessing is inside.
        parent: SHA-256 of the weights it was made from.
        about: what the model card says of where it comes from: plain JSON values.
        files: what was measured of each file: plain JSON values.
    """

    kind: str
    task: str
    output_names: tuple[str, ...]
    contract: InputContract
    preprocess: str
    layout: str
    parent: str
    about: dict[str, Any]
    files: tuple[dict[str, Any], ...] = ()

    def with_files(self, files: list[dict[str, Any]]) -> "Description":
        """The same with what was measured of its files."""
        return replace(self, files=tuple(files))


def describe(card: ModelCard, *, parent: str, preprocess: str = "outside", layout: str = "nchw") -> Description:
    """What a card of ours says, for the files made from its model."""
    return Description(
        card.kind, card.task, card.output_names, card.contract, preprocess, layout, parent, dict(card.about)
    )


def write_description(folder: Path, description: Description) -> Path:
    """Write `model.json` into the folder and give its path."""
    contract = description.contract
    is_inside = description.preprocess == "inside"
    sides = "batch, {0}, {0}, {1}" if description.layout == "nhwc" else "batch, {1}, {0}, {0}"
    fills = {"size": contract.size, "channels": contract.channels, "white_level": contract.white_level}
    steps = [step.format(**fills) for step in _STEPS]
    if not is_inside:
        steps.append("divide by 255, then (x - mean) / std for each channel")
    content = {
        "format": _FORMAT,
        "kind": description.kind,
        "task": description.task,
        "output_names": list(description.output_names),
        "outputs": _outputs_in_words(description),
        "input": {
            "name": "images",
            "dtype": "uint8" if is_inside else "float32",
            "shape": f"[{sides.format(contract.size, contract.channels)}]",
            "layout": description.layout,
            "preprocess": description.preprocess,
            "steps": steps,
        },
        "contract": asdict(contract),
        "parent_sha256": description.parent,
        "about": description.about,
        "files": list(description.files),
    }
    path = folder / NAME
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_description(folder: Path) -> Description:
    """What `model.json` of the folder says.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no {NAME}, which says what the exported model takes; export it again")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise UserError(f"{path} has format {raw['format']!r}; this version of ssl_ft reads format {_FORMAT}")
        description = Description(
            str(raw["kind"]),
            str(raw["task"]),
            tuple(raw["output_names"]),
            InputContract.from_json(raw["contract"]),
            str(raw["input"]["preprocess"]),
            str(raw["input"]["layout"]),
            str(raw["parent_sha256"]),
            dict(raw["about"]),
            tuple(raw["files"]),
        )
        problem = _problem(description)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is not a description of ours ({why}); export the model again") from error
    if problem:
        raise UserError(f"{path} cannot be trusted: {problem}. Export the model again")
    return description


def size_bytes(path: Path) -> int:
    """Bytes on disk of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _outputs_in_words(description: Description) -> str:
    if description.kind == "encoder":
        return "float32 [batch, features]"
    words = {
        "classes": "a logit for each class; their softmax gives shares that sum to 1",
        "multi_label": "a logit for each label; its sigmoid gives the label's probability",
        "regression": "a number for each target, in the unit it had in the training data",
    }
    return f"float32 [batch, {len(description.output_names)}]: {words[description.task]}"


def _problem(description: Description) -> str:
    contract = description.contract
    if description.kind not in ("classifier", "encoder") or description.task not in _TASKS:
        return f"kind {description.kind!r} or task {description.task!r} is unknown"
    if bool(description.output_names) != (description.kind == "classifier"):
        return "a classifier has output_names, an encoder none"
    if (description.preprocess, description.layout) not in (
        ("outside", "nchw"), ("inside", "nchw"), ("inside", "nhwc"),
    ):  # fmt: skip
        return f"preprocess {description.preprocess!r} and layout {description.layout!r} do not go together"
    if (
        type(contract.size) is not int
        or type(contract.channels) is not int
        or min(contract.size, contract.channels) < 1
    ):
        return "size and channels must be whole numbers of 1 or more"
    if len(contract.mean) != contract.channels or len(contract.std) != contract.channels:
        return "mean and std must have one number for each channel"
    if not all(math.isfinite(x) for x in (*contract.mean, *contract.std)) or min(contract.std) <= 0:
        return "mean must be finite and std positive"
    return ""
