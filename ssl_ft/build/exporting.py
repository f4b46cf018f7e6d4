"""A model of ours as files for others: each is written, run in a fresh process on real images, and kept if it agrees.

The formats themselves are in `ssl_ft/export/`; scoring a file on test images is in `auditing.py`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_ft.artifact import ModelCard, file_digest, find_model, load_model, read_card
from ssl_ft.build.data import open_data, pool_of, roles_of
from ssl_ft.build.judging import parent_data
from ssl_ft.build.origins import load_whole
from ssl_ft.config import ExportSettings
from ssl_ft.data.listing import evenly_spread
from ssl_ft.data.source import Source, open_source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import compute_outputs, read_inputs
from ssl_ft.export.check import Checked, check_file
from ssl_ft.export.description import Description, describe, size_bytes
from ssl_ft.export.extras import require_onnx
from ssl_ft.export.folder import complete_folder
from ssl_ft.export.inside import Normalised
from ssl_ft.export.onnx_file import write_onnx_graph
from ssl_ft.export.program_file import (
    require_compiler,
    require_executorch,
    write_executorch,
    write_inductor,
    write_program,
)
from ssl_ft.export.running import Floats32, Pixels, preparer
from ssl_ft.export.timm_folder import check_timm, write_timm_folder
from ssl_ft.result import Metric
from ssl_ft.runlog import RunFolder

# What each format's file, or folder, is called.
NAMES = {
    "onnx": "model.onnx",
    "torch": "model.pt2",
    "timm": "timm",
    "inductor": "model.inductor.pt2",
    "executorch": "model.pte",
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to export, with what its files are checked on.

    Attributes:
        model: in evaluation mode, on the CPU.
        card: what its folder says.
        digest: SHA-256 of its weights.
        role: which images the files are checked on: "train", or "given".
        source: holds them.
        pixels: uint8 [N, C, size, size].
        expected: the model's outputs, float32 [N, K].
    """

    model: nn.Module
    card: ModelCard
    digest: str
    role: str
    source: Source
    pixels: Pixels
    expected: Floats32


def open_subject(settings: ExportSettings, run: RunFolder) -> Subject:
    """The model and its answers on the images its files are checked on. Its parent is recorded in the run.

    Raises:
        UserError: no such model or images, or none that can be read.
    """
    folder = find_exported_model(settings)
    model, card, parent = load_whole(folder)
    run.parents.append(parent)
    role, source, indices = _images(settings, folder)
    picked = indices[evenly_spread(len(indices), most=settings.check_images)]
    inputs = read_inputs(source, picked, card.contract, max_damaged_share=1.0, max_pixels=89_478_485, workers=2)
    if not len(inputs.pixels):
        raise UserError(f"{source.location}: not one of {len(picked)} images can be read; name others with images=")
    expected = compute_outputs(model, inputs.pixels, card.contract, device=torch.device("cpu"), batch_size=64)
    return Subject(model, card, parent.sha256, role, source.subset(inputs.indices), inputs.pixels, expected)


def find_exported_model(settings: ExportSettings) -> Path:
    """The model folder that `model=` means.

    Raises:
        UserError: there is none.
    """
    if not settings.model:
        raise UserError(
            "model= is missing: give a finished run, or the model folder in it, such as model=runs/finetune-..."
        )
    return find_model(settings.model, kind=("classifier", "encoder"), setting="model")


def check_formats(settings: ExportSettings, folder: Path) -> None:
    """Make sure, before anything is written, that packages and compiler are there and timm can build the model.

    Raises:
        UserError: as said.
    """
    if "onnx" in settings.formats:
        require_onnx(what="formats=onnx")
    if "inductor" in settings.formats:
        require_compiler()
    if "executorch" in settings.formats:
        require_executorch()
    if "timm" in settings.formats:
        model, card, _ = load_model(folder)
        check_timm(model, card)


def write_files(settings: ExportSettings, subject: Subject, run: RunFolder) -> list[Metric]:
    """Write, check and describe the files in `exported/`, and give the rows of `result.json`.

    A format that cannot be written, or run in a fresh process, is left out with a note.
    """
    folder = run.path / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    description = describe(subject.card, parent=subject.digest, preprocess=settings.preprocess, layout=settings.layout)
    files, rows = [], list[Metric]()
    for each in settings.formats:
        path = folder / NAMES[each]
        try:
            _write(each, subject, path, description)
            checked = _check(each, subject, path, description)
        except UserError as error:  # the other formats are not to be lost for it
            _remove(path)
            run.note(f"{path.name} was not kept: {error}")
            continue
        size = size_bytes(path)
        rows += _rows(each, checked, size, role=subject.role)
        run.note(_sentence(path, checked, tolerance=settings.tolerance, role=subject.role))
        if checked.deviation > settings.tolerance:
            _remove(path)
            continue
        files.append(_about_file(each, path, checked, size=size, settings=settings))
    complete_folder(folder, description.with_files(files))
    return rows


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def are_all_kept(settings: ExportSettings, run: Path) -> bool:
    """Whether every file that was asked for lies in the run folder."""
    return all((run / "exported" / NAMES[each]).exists() for each in settings.formats)


def _write(kind: str, subject: Subject, path: Path, description: Description) -> None:
    if kind == "timm":
        write_timm_folder(subject.model, subject.card, path)
        return
    model, example = subject.model, _example(description)
    if description.preprocess == "inside":
        model = Normalised(subject.model, description.contract, layout=description.layout).eval()
    writers: dict[str, Callable[[], None]] = {
        "onnx": lambda: write_onnx_graph(model, path, example=example),
        "torch": lambda: write_program(model, path, example=example),
        "inductor": lambda: write_inductor(model, path, example=example),
        "executorch": lambda: write_executorch(model, path, example=example),
    }
    writers[kind]()


def _example(description: Description) -> Tensor:
    contract = description.contract
    prepared = preparer(description)(np.zeros((2, contract.channels, contract.size, contract.size), np.uint8))
    return torch.from_numpy(np.ascontiguousarray(prepared))


def _check(kind: str, subject: Subject, path: Path, description: Description) -> Checked:
    plain = describe(subject.card, parent=subject.digest)
    inputs = preparer(plain if kind == "timm" else description)(subject.pixels)
    are_classes = subject.card.kind == "classifier" and subject.card.task == "classes"
    return check_file(kind, path, inputs=inputs, expected=subject.expected, are_classes=are_classes)


def _images(settings: ExportSettings, folder: Path) -> tuple[str, Source, NDArray[np.int64]]:
    """The role of the images to check on, their source, and which of them."""
    if settings.images:
        source = open_source(settings.images)
        return "given", source, np.arange(len(source))
    try:
        data = parent_data(folder)
    except UserError as error:
        raise UserError(f"{error}; or give images to check the files on with images=") from error
    source = open_data(data)
    if read_card(folder)[0].kind == "encoder":
        pool = pool_of(source, data)[0]
        return "train", pool, np.arange(len(pool))
    return "train", source, roles_of(source, data).train


def _about_file(kind: str, path: Path, checked: Checked, *, size: int, settings: ExportSettings) -> dict[str, object]:
    weights = path / "model.safetensors" if path.is_dir() else path
    return {
        "name": path.name,
        "format": kind,
        "size_bytes": size,
        "sha256": file_digest(weights),
        "tolerance": settings.tolerance,
        "deviation": checked.deviation,
        "top1_agreement": checked.agreement,
        "checked_on": checked.num_images,
    }


def _rows(kind: str, checked: Checked, size: int, *, role: str) -> list[Metric]:
    figures = {"largest_deviation": checked.deviation, "size_mb": size / 1e6}
    figures |= {} if checked.agreement is None else {"top1_agreement": checked.agreement}
    return [
        Metric(name=name, value=value, n=checked.num_images, split=role, model=kind) for name, value in figures.items()
    ]


def _sentence(path: Path, checked: Checked, *, tolerance: float, role: str) -> str:
    same = "" if checked.agreement is None else f", the same class for {100 * checked.agreement:.2f} % of them"
    kept = "" if checked.deviation <= tolerance else f": more than tolerance={tolerance:g} allows, it was removed"
    images = f"{checked.num_images} {'training' if role == 'train' else 'given'} images"
    return (
        f"{path.name}, loaded in a fresh process, deviates by at most {checked.deviation:.1e} of the largest output on "
        f"{images}{same}{kept}"
    )


def plan_export(settings: ExportSettings) -> list[str]:
    """What would be exported and checked, in sentences.

    Raises:
        UserError: no such model, or a format that it cannot have.
    """
    folder = find_exported_model(settings)
    check_formats(settings, folder)
    card = read_card(folder)[0]
    where = settings.images or "training images of its run"
    return [
        f"{folder}: {card.kind}, {card.spec.name}, {card.contract.channels} x {card.contract.size} x "
        f"{card.contract.size}",
        f"exported/ with {', '.join(NAMES[each] for each in settings.formats)}, each run in a fresh process on "
        f"{settings.check_images} of {where}; what deviates by more than {settings.tolerance:g} is not kept",
    ]
