"""Golden curves: the first 20 losses of every objective are those that were written down; see `capture.py`."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden.capture import FOLDER, NUM_STEPS, golden_losses
from tests.pipelines.training import CASES

ADVICE = (
    "the numbers of this objective moved. If that was meant, run `python -m tests.golden.capture` and say why in the "
    "commit; if not, something that should not matter changed the views, the order, the weights or the loss"
)
# Fresh weights are float32 and differ in their last digit between processors with and without AVX2. Training magnifies
# that tenfold in about three steps: measured 3e-5 at step 10, 1e-3 at step 20.
TOLERANCES = np.where(np.arange(NUM_STEPS) < 10, 1e-4, 1e-2)


# In images of 64 px each step of this one takes as long as four of the others.
SHORTER = {"shared-convnet": 6}


@pytest.mark.parametrize("case", list(CASES))
def test_the_first_losses_are_as_written_down(case: str, tmp_path: Path) -> None:
    compare(case, tmp_path, num_steps=SHORTER.get(case, NUM_STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(SHORTER))
def test_all_losses_are_as_written_down(case: str, tmp_path: Path) -> None:
    compare(case, tmp_path, num_steps=NUM_STEPS)


def compare(case: str, folder: Path, *, num_steps: int) -> None:
    written = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    expected = np.array([float(text) for text in written["losses"]])
    assert len(expected) == NUM_STEPS
    found = np.array(golden_losses(case, folder, num_steps))
    away = np.abs(found / expected[:num_steps] - 1)
    too_far = away > TOLERANCES[:num_steps]
    first = int(too_far.argmax())
    assert not too_far.any(), (
        f"{case}: step {first + 1} gave {found[first]:.6g}, written down on torch {written['torch']} is "
        f"{expected[first]:.6g}: {ADVICE}"
    )


def test_every_file_belongs_to_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)
