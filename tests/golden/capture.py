"""Writes the golden curves: the first 20 losses of each objective on a CPU with one thread, in float64.

    python -m tests.golden.capture

Run it only where numbers are meant to move, and say in the commit why they did. The values are kept to six
significant digits; `test_golden.py` says how closely others must meet them. In float32 rounding alone moved them by
1e-3 between kernels of one machine, as AdamW's first steps divide gradients that are 0 but for rounding by themselves.
"""

import json
import tempfile
from pathlib import Path

import torch

from ssl_ft.build.pretraining import assemble, open_pool
from ssl_ft.runlog import RunFolder
from tests.pipelines.training import CASES, settings_of, train_steps, write_images

FOLDER = Path(__file__).parent
NUM_STEPS = 20


def golden_losses(case: str, folder: Path, num_steps: int = NUM_STEPS) -> list[float]:
    """The first losses of a case, each from the step before its update."""
    settings = settings_of(case, write_images(folder), precision="float64")
    run = RunFolder(folder / case, stage="pretrain", settings=settings.model_dump(mode="json"))
    work, _, _ = assemble(settings, open_pool(settings), run)
    return [row["loss"] for row in train_steps(work, num_steps=num_steps, rate=work.plan.rate)]


def main() -> None:
    """Write one file a case."""
    torch.set_num_threads(1)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            losses = golden_losses(case, Path(folder))
        text = json.dumps({"torch": torch.__version__, "losses": [f"{loss:.6g}" for loss in losses]}, indent=1)
        (FOLDER / f"{case}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
