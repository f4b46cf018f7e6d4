"""A comparison's findings as a whole: order of cells, several encoders, seeds, costs beside the baseline."""

import random
from dataclasses import replace

import numpy as np
import pytest

from ssl_ft.evaluate.metrics import estimate
from ssl_ft.evaluate.summary import summarise
from tests.report.fake_comparison import fake_cells


def small(**changes):
    question, cells = fake_cells(images=200, draws=3, **changes)
    return replace(question, num_resamples=100, num_score_resamples=50), cells


def test_the_order_of_cells_does_not_matter():
    question, cells = small()
    mixed = list(cells)
    random.Random(0).shuffle(mixed)
    rows = {(row.model, row.budget): row for row in summarise(question, mixed).rows}
    assert rows == {(row.model, row.budget): row for row in summarise(question, cells).rows}


def test_scores_are_those_of_the_metrics():
    question, cells = small(seeds=2)
    summary = summarise(question, cells)
    (row,) = [row for row in summary.rows if (row.model, row.budget) == ("full", 10)]
    own = [cell for key, cell in cells if (key.strategy, key.budget) == ("full", 10)]
    expected = estimate(
        question.labels,
        np.stack([cell.predictions for cell in own]).astype(np.int64),
        confidences=np.stack([cell.confidences for cell in own]).astype(np.float64),
        num_classes=10,
        seed=0,
        repeats=2,
        num_resamples=50,
    )
    assert row.scores == tuple(expected)
    assert (summary.num_draws, summary.num_seeds, row.num_labels) == (3, 2, 100)
    assert row.chosen == "optim.rate=0.003 (6 of 6)"


def test_cells_that_trained_different_parts_are_told_from_the_fewest_to_the_most():
    question, cells = small()
    other = [
        (key, replace(cell, num_trained=77 if (key.strategy, key.draw) == ("full", 1) else cell.num_trained))
        for key, cell in cells
    ]
    rows = {(row.model, row.budget): row for row in summarise(question, other).rows}
    assert (rows["full", 10].num_trained, rows["full", 10].most_trained) == (77, 4_900_000)
    assert (rows["probe", 10].num_trained, rows["probe", 10].most_trained) == (5130, None)


def test_labels_of_a_row_are_the_median_of_its_cells():
    question, cells = small()
    other = [(key, replace(cell, num_labels=cell.num_labels + (key.draw == 0))) for key, cell in cells]
    assert {row.num_labels for row in summarise(question, other).rows} == {20, 100, 500}


def test_each_encoder_is_held_against_its_own_baseline():
    question, cells = small(encoders=("one", "two"))
    summary = summarise(question, cells)
    pairs = {(reach.model, reach.baseline) for reach in summary.reaches}
    assert ("probe (one)", "scratch (one)") in pairs
    assert ("probe (two)", "scratch (two)") in pairs
    assert all(model.split(" ")[1] == baseline.split(" ")[1] for model, baseline in pairs)


def test_a_strategy_left_out_for_one_encoder_is_still_compared_for_the_other():
    question, cells = small(encoders=("one", "two"))
    kept = [(key, cell) for key, cell in cells if (key.encoder, key.strategy) != ("two", "lora")]
    models = {row.model for row in summarise(question, kept).rows}
    assert "lora (one)" in models
    assert "lora (two)" not in models


def test_costs_stand_beside_the_baseline():
    question, cells = small()
    costs = {(cost.model, cost.budget): cost for cost in summarise(question, cells).costs}
    probe = costs["probe", 10]
    assert (probe.seconds, probe.train_seconds) == (9.0, 2.0)
    # 420 s of pretraining over 13 s saved by each classifier.
    assert probe.computing is not None
    assert probe.computing.classifiers == 33
    assert costs["scratch", 10].computing is None
    # On four cores the same time was four times the work of a cell's one.
    wide = replace(question, encoders=(replace(question.encoders[0], pretrain_cores=4),))
    beside = next(c for c in summarise(wide, cells).costs if (c.model, c.budget) == ("probe", 10)).computing
    assert beside is not None
    assert (beside.pretrain_seconds, beside.classifiers) == (1680.0, 130)
    unknown = replace(question, encoders=(replace(question.encoders[0], pretrain_seconds=None),))
    assert all(cost.computing is None for cost in summarise(unknown, cells).costs)


def test_findings_but_for_costs_do_not_depend_on_seconds():
    question, cells = small()
    slower = [(key, replace(cell, seconds=cell.seconds * 3, train_seconds=99.0)) for key, cell in cells]
    one, two = summarise(question, cells), summarise(question, slower)
    assert replace(one, costs=()) == replace(two, costs=())
    assert one.costs != two.costs


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_shares_of_a_budget_sum_to_one(tolerance):
    question, cells = small()
    summary = summarise(replace(question, tolerance=tolerance), cells)
    for budget in (2, 10, 50):
        assert sum(row.share_best for row in summary.rows if row.budget == budget) == pytest.approx(1.0)
        assert all(row.share_within >= row.share_best - 1e-9 for row in summary.rows)
