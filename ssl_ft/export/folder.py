"""What lies beside exported files so that a stranger can use them: `model.json`, and `predict.py` for a classifier."""

import shutil
from pathlib import Path

from ssl_ft.export import standalone
from ssl_ft.export.description import Description, write_description


def complete_folder(folder: Path, description: Description) -> None:
    """Write `model.json`, and `predict.py` beside the `model.onnx` of a classifier."""
    write_description(folder, description)
    if (folder / "model.onnx").is_file() and description.kind == "classifier":
        shutil.copyfile(standalone.__file__, folder / "predict.py")
