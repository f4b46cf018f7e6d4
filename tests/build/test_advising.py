"""The rule's score over several comparisons: each is resampled by itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_ft.build.advising import score_runs
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import write_cell
from ssl_ft.evaluate.summary import summarise
from ssl_ft.report.comparison_files import write_summary
from tests.report.fake_comparison import fake_cells


def write_run(folder: Path, *, images: str = "these") -> Path:
    """A finished comparison with its cells; of seed 0, as most are."""
    question, cells = fake_cells(images=150, draws=2)
    folder.mkdir()
    write_summary(folder, summarise(replace(question, num_resamples=100, num_score_resamples=20), cells))
    (folder / "cells").mkdir()
    for key, cell in cells:
        write_cell(folder / "cells", key, cell)
    np.savez(folder / "truth.npz", labels=question.labels)
    (folder / "manifest.json").write_text(json.dumps({"settings": {"seed": 0, "labelled_images": images}}))
    return folder


@pytest.mark.parametrize(("images", "share"), [("others", 1 / np.sqrt(2)), ("these", 1.0)])
def test_comparisons_of_one_seed_err_together_on_the_same_images_alone(tmp_path, images, share):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", images=images)
    single, both = score_runs([str(one)]).regret, score_runs([str(one), str(other)]).regret
    assert both.value == pytest.approx(single.value)
    width = (both.high - both.low) / (single.high - single.low)
    assert width == pytest.approx(share, rel=0.1), "drawn alike, the interval stays as wide"


def test_a_comparison_without_its_truth_is_told(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "truth.npz").unlink()
    with pytest.raises(UserError, match=r"holds a damaged comparison .*run it again"):
        score_runs([str(run)])
