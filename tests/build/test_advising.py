"""The rule's score over several comparisons: each is resampled by itself."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_ft.build.advising import pretrain_cores, score_runs
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import write_cell
from ssl_ft.evaluate.summary import summarise
from ssl_ft.report.advice_words import score_sentences
from ssl_ft.report.comparison_files import write_summary
from tests.report.fake_comparison import fake_cells


def write_run(folder: Path, *, images: str = "these", names: dict[str, str] | None = None) -> Path:
    """A finished comparison with its cells; of seed 0, as most are; `names` are other strategies' for the fake ones."""
    question, cells = fake_cells(images=150, draws=2)
    if names is not None:
        cells = [(replace(k, strategy=names[k.strategy]), cell) for k, cell in cells if k.strategy in names]
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


def test_two_draws_show_nothing_to_be_worse_and_that_is_said(tmp_path):
    scores = score_runs([str(write_run(tmp_path / "run"))])
    assert all(each.is_as_good and each.has_few_draws for each in scores.scores)
    text = " ".join(score_sentences(scores)).replace("\N{NO-BREAK SPACE}", " ")
    assert "3 choices of these were compared on fewer than 5 draws of labels" in text


def test_a_comparison_without_its_truth_is_told(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "truth.npz").unlink()
    with pytest.raises(UserError, match=r"holds a damaged comparison .*run it again"):
        score_runs([str(run)])


def test_a_comparison_without_any_strategy_of_the_rule_is_scored_by_the_first_it_has(tmp_path):
    run = write_run(tmp_path / "run", names={"scratch": "scratch", "probe": "l2sp", "full": "gradual"})
    scores = score_runs([str(run)])
    assert {(each.advised, each.is_by_rule) for each in scores.scores} == {("gradual", False)}
    assert "nothing the rule names was compared" in score_sentences(scores)[0]
    ruled = score_runs([str(write_run(tmp_path / "ruled"))])
    assert all(each.is_by_rule for each in ruled.scores)
    assert "nothing the rule names" not in " ".join(score_sentences(ruled))


@pytest.mark.parametrize(
    ("manifest", "cores"),
    [
        ({"device": "cpu", "num_ranks": 2, "threads": 4, "settings": {"threads": None}}, 8),
        ({"device": "cpu", "num_ranks": 1, "settings": {"threads": 3}}, 3),
        ({"device": "cpu", "num_ranks": 1, "settings": {"threads": None}}, None),
        ({"device": "cuda:0", "num_ranks": 1, "threads": 4, "settings": {"threads": 4}}, None),
        ([], None),
    ],
)
def test_cores_of_a_pretraining_are_its_ranks_times_their_threads(tmp_path, manifest, cores):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert pretrain_cores(SimpleNamespace(folder=tmp_path / "encoder", kind="encoder")) == cores
    assert pretrain_cores(SimpleNamespace(folder=tmp_path / "classifier", kind="classifier")) is None
