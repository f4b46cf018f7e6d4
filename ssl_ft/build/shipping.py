"""What compress leaves: the model folder, where one can hold the model, and the exported file that runs elsewhere."""

from dataclasses import replace
from pathlib import Path

from ssl_ft.artifact import save_model
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
    card = made.card
    if made.is_loadable:
        save_model(run.path / "classifier", made.model, replace(card, about={**about, **card.about}))
    folder = run.path / "exported"
    folder.mkdir(exist_ok=True)
    if made.write is not None:
        path = made.write(folder)
    else:
        path = folder / "model.onnx"
        write_onnx(made.model, path, channels=card.contract.channels, size=card.contract.size)
    complete_folder(folder, describe(card, parent=run.parents[0].sha256))
    return path
