"""What compress leaves: the model folder, where one can hold the model, and the exported file that runs elsewhere."""

import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from ssl_ft.artifact import InputContract, save_model
from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.export.description import describe
from ssl_ft.export.folder import complete_folder
from ssl_ft.export.onnx_file import write_onnx
from ssl_ft.handover import provenance
from ssl_ft.result import LabelsUsed


def write_models(made: Compressed, work: Work, used: LabelsUsed) -> Path:
    """Write `classifier/` and `exported/` into the run folder; gives the exported file.

    Args:
        made: by the method.
        work: what it worked on.
        used: labels, all of which the model's card counts.
    """
    settings, run = work.settings, work.run
    about = provenance(
        f"compressed ({settings.method})", settings.model, run, steps=made.steps,
        num_labels=used.train + used.val + used.earlier,
    )  # fmt: skip
    card = replace(made.card, about={**about, **made.card.about})
    digest = run.parents[0].sha256
    if made.is_loadable:
        digest = save_model(run.path / "classifier", made.model, card)
        run.keep()  # from here on there is a trained model in the folder, whatever else fails
    folder = run.path / "exported"
    folder.mkdir(exist_ok=True)
    if made.write is not None:
        path = made.write(folder)
    else:
        path = folder / "model.onnx"
        write_onnx(made.model, path, channels=card.contract.channels, size=card.contract.size)
    complete_folder(folder, describe(card, parent=digest))
    return path


def check_can_ship(model: nn.Module, contract: InputContract) -> None:
    """Write a model, fresh or trained, as ONNX and throw it away, so that a layer that cannot be is known beforehand.

    Raises:
        UserError: it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(model, Path(folder) / "model.onnx", channels=contract.channels, size=contract.size)
