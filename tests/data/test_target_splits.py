"""Roles and budgets of targets: nested, keyed, stratified, every label with a positive where there is one."""

import itertools

import numpy as np
import pytest

from ssl_ft.data.splits import Roles
from ssl_ft.data.target_splits import (
    assign_target_roles,
    carve_target_val,
    target_budget,
    target_gaps,
    value_groups,
)
from ssl_ft.errors import UserError


def labels_of(count: int = 200, *, seed: int = 0, missing: float = 0.1) -> np.ndarray:
    """Five labels, from common to three positives in all, with holes."""
    generator = np.random.default_rng(seed)
    values = (generator.random((count, 5)) < [0.5, 0.3, 0.1, 0.05, 0.0]).astype(np.float32)
    values[generator.choice(count, 3, replace=False), 4] = 1
    holes = generator.random(values.shape) < missing
    holes[:, 4] = False
    values[holes] = np.nan
    return values


def numbers_of(count: int = 200, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(size=(count, 1)).astype(np.float32)


def roles(targets: np.ndarray, task: str, **more: object) -> Roles:
    arguments = {"splits": None, "train_split": "train", "val_split": None, "test_split": "test", "test_share": 0.2,
                 "seed": 0, "names": tuple("abcdefgh"[: targets.shape[1]]), **more}  # fmt: skip
    return assign_target_roles(targets, task=task, **arguments)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
@pytest.mark.parametrize("seed", range(10))
def test_budgets_are_nested_distinct_and_reproducible(task: str, seed: int) -> None:
    targets = labels_of() if task == "multi_label" else numbers_of()
    candidates = np.flatnonzero(~np.isnan(targets).all(axis=1))
    taken = [target_budget(targets, candidates, task=task, size=n, draw=1, seed=seed) for n in (1, 2, 5, 10, 50, 150)]
    for small, large in itertools.pairwise(taken):
        assert set(small) < set(large)
    assert [len(each) for each in taken] == [1, 2, 5, 10, 50, 150]
    assert set(taken[-1]) <= set(candidates)
    again = target_budget(targets, candidates[::-1], task=task, size=10, draw=1, seed=seed)
    np.testing.assert_array_equal(again, taken[3])
    other = target_budget(targets, candidates, task=task, size=50, draw=2, seed=seed)
    assert set(other) != set(taken[4])


@pytest.mark.parametrize("seed", range(10))
def test_every_label_has_a_positive_in_a_budget_that_can_hold_them(seed: int) -> None:
    targets = labels_of(seed=seed)
    candidates = np.arange(len(targets))
    chosen = target_budget(targets, candidates, task="multi_label", size=5, draw=0, seed=seed)
    assert np.all((targets[chosen] == 1).any(axis=0))


@pytest.mark.parametrize("seed", range(10))
def test_a_budget_of_numbers_takes_one_of_each_tenth(seed: int) -> None:
    targets = numbers_of(200, seed=seed)
    chosen = target_budget(targets, np.arange(200), task="regression", size=10, draw=0, seed=seed)
    deciles = targets[:, 0].argsort().argsort() // 20
    assert sorted(deciles[chosen]) == list(range(10))
    chosen = target_budget(targets, np.arange(200), task="regression", size=25, draw=0, seed=seed)
    assert set(np.bincount(deciles[chosen], minlength=10)) == {2, 3}


def test_a_share_and_too_much() -> None:
    targets = numbers_of(41)
    assert len(target_budget(targets, np.arange(41), task="regression", size=0.5, draw=0, seed=0)) == 21
    assert len(target_budget(targets, np.arange(41), task="regression", size=0.001, draw=0, seed=0)) == 1
    with pytest.raises(
        UserError, match=r"There are 41 labelled images .* fewer than the labels=42 asked for: .* in all"
    ):
        target_budget(targets, np.arange(41), task="regression", size=42, draw=0, seed=0)


@pytest.mark.parametrize("seed", range(10))
def test_test_and_val_take_their_share_of_every_label(seed: int) -> None:
    targets = labels_of(400, seed=seed)
    found = roles(targets, "multi_label", seed=seed)
    positives = targets == 1
    assert len(found.test) == pytest.approx(80, abs=4)
    assert np.all(np.abs(positives[found.test].sum(0) - 0.2 * positives.sum(0)) <= 3)
    assert positives[found.test].sum(0)[4] == 1  # of three positives one goes to test
    train, val = carve_target_val(targets, found.train, task="multi_label", share=0.25, seed=seed, draw=0)
    assert sorted([*train, *val]) == sorted(found.train)
    assert np.all(positives[val].sum(0) >= 1)
    assert np.all(positives[train].sum(0) >= 1)


@pytest.mark.parametrize("seed", range(10))
def test_numbers_are_held_out_over_their_whole_range(seed: int) -> None:
    targets = numbers_of(200, seed=seed)
    deciles = targets[:, 0].argsort().argsort() // 20
    found = roles(targets, "regression", seed=seed)
    assert np.bincount(deciles[found.test], minlength=10).tolist() == [4] * 10
    train, val = carve_target_val(targets, found.train[:2], task="regression", share=0.1, seed=0, draw=0)
    assert (len(train), len(val)) == (1, 1)
    train, val = carve_target_val(targets, found.train[:1], task="regression", share=0.9, seed=0, draw=0)
    assert (len(train), len(val)) == (1, 0)


def test_groups_of_several_targets_go_by_their_mean_rank() -> None:
    first = np.array([1, 2, 3, 4], np.float32)
    both = np.stack([first, 100 * first], axis=1)
    both[1, 1] = np.nan
    assert value_groups(both, num_groups=2).tolist() == [0, 0, 1, 1]
    assert value_groups(np.stack([first, -first], axis=1)[[0, 3]], num_groups=1).tolist() == [0, 0]
    assert value_groups(np.empty((0, 1), np.float32), num_groups=3).tolist() == []


def test_splits_of_the_data_and_images_without_targets() -> None:
    targets = np.array([[1, 0], [0, 1], [np.nan, np.nan], [1, 0], [0, 1], [1, 1]], np.float32)
    splits = np.array(["train", "train", "train", "test", "test", "val"])
    found = roles(targets, "multi_label", splits=splits, val_split="val")
    assert (found.train.tolist(), found.val.tolist(), found.test.tolist()) == ([0, 1], [5], [3, 4])
    with pytest.raises(UserError, match="no split called 'trial'"):
        roles(targets, "multi_label", splits=splits, test_split="trial")
    drawn = roles(targets[[0, 1, 3, 4, 0, 1, 3, 4]], "multi_label", splits=np.array(["train"] * 8), test_split=None)
    assert len(drawn.test) == 2


def test_parts_that_teach_or_tell_nothing_are_refused() -> None:
    numbers = np.array([[1], [1], [2], [3]], np.float32)
    splits = np.array(["train", "train", "test", "test"])
    with pytest.raises(
        UserError, match=r"The target 'a' has one value only, 1, among the 2 training images, .* learnt"
    ):
        roles(numbers, "regression", splits=splits)
    two = np.array([[1, 1], [2, 2], [np.nan, 3], [np.nan, 4]], np.float32)
    with pytest.raises(UserError, match=r"'a' has no value among the 2 test images, so it cannot be scored"):
        roles(two, "regression", splits=splits)
    with pytest.raises(UserError, match="None of the test images has a target"):
        roles(np.array([[1], [2], [np.nan], [np.nan]], np.float32), "regression", splits=splits)
    with pytest.raises(UserError, match=r"'a' has no positive \(1\) among the 2 training images"):
        roles(np.array([[0], [0], [0], [1]], np.float32), "multi_label", splits=splits)
    # One label of several without a positive is told, not refused.
    both = np.array([[0, 1], [0, 0], [0, 1], [1, 0]], np.float32)
    assert len(roles(both, "multi_label", splits=splits).train) == 2
    assert target_gaps(both[:2], task="multi_label", names=("a", "b")) == ["The target 'a' has no positive (1)"]
