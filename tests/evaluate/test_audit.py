"""Losses between two models: by hand, by slow resampling, and in the limits."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score

from ssl_ft.evaluate.audit import (
    drop_of_classes,
    label_calibration,
    loss_of_classes,
    loss_of_targets,
    value_of,
)
from ssl_ft.evaluate.target_metrics import paired_target_difference


def shares(generator: np.random.Generator, count: int) -> np.ndarray:
    raw = generator.random((count, 3))
    return raw / raw.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_drop_is_accuracy_less_accuracy_and_agreement_a_share(seed):
    generator = np.random.default_rng(seed)
    labels, parent, child = generator.integers(0, 3, 40), shares(generator, 40), shares(generator, 40)
    loss = loss_of_classes(labels, parent, child, seed=1)
    right = [sum(int(each[i].argmax() == labels[i]) for i in range(40)) / 40 for each in (parent, child)]
    assert loss.drop.value == pytest.approx(right[0] - right[1])
    assert loss.drop.low <= loss.drop.value <= loss.drop.high
    assert loss.agreement.value == pytest.approx(
        sum(int(parent[i].argmax() == child[i].argmax()) for i in range(40)) / 40
    )
    assert value_of(loss.parent, "accuracy") == pytest.approx(right[0])
    assert value_of(loss.child, "expected_calibration_error") is not None
    assert value_of(loss.child, "nothing") is None
    first = drop_of_classes(labels, parent.argmax(1), child.argmax(1), seed=1)
    assert (first.value, first.low, first.high) == (loss.drop.value, loss.drop.low, loss.drop.high)


def test_the_same_model_loses_nothing_and_its_interval_is_a_point():
    generator = np.random.default_rng(0)
    labels, parent = generator.integers(0, 3, 40), shares(generator, 40)
    loss = loss_of_classes(labels, parent, parent, seed=0)
    assert (loss.drop.value, loss.drop.low, loss.drop.high) == (0, 0, 0)
    assert (loss.agreement.value, loss.agreement.low, loss.agreement.high) == (1, 1, 1)


def test_pairing_narrows_the_interval():
    """Two models that differ on one image in fifty: unpaired, each accuracy has an interval of many points."""
    generator = np.random.default_rng(0)
    labels, parent = generator.integers(0, 3, 200), shares(generator, 200)
    child = parent.copy()
    child[::50] = child[::50][:, ::-1]
    loss = loss_of_classes(labels, parent, child, seed=0)
    width = loss.parent[0].estimate.high - loss.parent[0].estimate.low
    assert loss.drop.high - loss.drop.low < width / 3


@pytest.mark.parametrize(("task", "score"), [("multi_label", average_precision_score), ("regression", r2_score)])
def test_targets_are_held_against_each_other_on_the_same_resamples(task, score):
    generator = np.random.default_rng(2)
    truth = generator.random((60, 2))
    truth = (truth > 0.5).astype(np.float32) if task == "multi_label" else truth.astype(np.float32)
    parent = 0.6 * truth + 0.4 * generator.random((60, 2))
    child = 0.5 * truth + 0.5 * generator.random((60, 2))
    found = paired_target_difference(truth, parent, child, task=task, seed=3, num_resamples=100)

    def mean(outputs: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([score(truth[rows, k], outputs[rows, k]) for k in range(2)]))

    everything = np.arange(60)
    assert found.value == pytest.approx(mean(parent, everything) - mean(child, everything))
    slow = []
    for number in range(100):
        own = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, number])))
        rows = own.integers(60, size=60)
        slow.append(mean(parent, rows) - mean(child, rows))
    shifted = np.array(slow) + found.value - np.mean(slow)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shifted, [0.025, 0.975])), abs=1e-9)


def test_targets_without_a_positive_are_nothing_to_compare():
    truth = np.zeros((5, 1), np.float32)
    found = paired_target_difference(truth, np.ones((5, 1)), np.ones((5, 1)), task="multi_label", seed=0)
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, 0)


def test_agreement_of_numbers_is_told_in_their_spread():
    truth = np.arange(4, dtype=np.float32)[:, None]
    parent = np.array([[0.0], [2.0], [4.0], [6.0]])  # variance 5
    child = parent + np.array([[1.0], [-1.0], [1.0], [-1.0]])
    loss = loss_of_targets(truth, parent, child, names=["size"], task="regression", seed=0)
    assert loss.agreement.value == pytest.approx(1 - 1 / 5)
    assert value_of(loss.parent, "expected_calibration_error") is None


def test_calibration_of_labels_leaves_missing_ones_out():
    targets = np.array([[1, np.nan], [0, 1]], np.float32)
    probabilities = np.array([[0.8, 0.9], [0.8, 0.8]])
    # Three decisions, each 0.8 sure, two of them right.
    assert label_calibration(targets, probabilities).value == pytest.approx(0.8 - 2 / 3)
