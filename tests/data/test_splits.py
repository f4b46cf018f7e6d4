"""Roles, budgets and val carving: what is promised about membership, and each message a user can meet."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_ft.data.splits import Indices, Roles, assign_roles, carve_val, label_budget
from ssl_ft.errors import UserError


def _labels(seed: int, *, counts: tuple[int, ...] = (40, 25, 10), unlabelled: int = 15) -> Indices:
    """Shuffled labels with these class sizes and some −1."""
    labels = np.repeat([-1, *range(len(counts))], [unlabelled, *counts])
    return np.random.default_rng(seed).permutation(labels)


def _splits(*names_and_counts: tuple[str, int]) -> NDArray[np.str_]:
    return np.repeat([name for name, _ in names_and_counts], [count for _, count in names_and_counts])


def _counts(labels: Indices, indices: Indices) -> list[int]:
    return np.bincount(labels[indices], minlength=int(labels.max()) + 1).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_drawn_test_part_is_stratified_and_covers_every_labelled_image(seed: int) -> None:
    labels = _labels(seed, counts=(40, 25, 10, 2, 1))

    roles = assign_roles(labels, splits=None, seed=seed)

    # A fifth of each class; of two images one each way; an only image stays in train.
    assert _counts(labels, roles.test) == [8, 5, 2, 1, 0]
    assert len(roles.val) == 0
    np.testing.assert_array_equal(np.sort(np.r_[roles.train, roles.test]), np.flatnonzero(labels >= 0))
    assert roles.train.dtype == roles.val.dtype == roles.test.dtype == np.int64


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_extreme_shares_leave_one_image_of_each_class_on_both_sides(share: float) -> None:
    labels = _labels(0)
    roles = assign_roles(labels, splits=None, test_share=share, seed=0)
    assert min(_counts(labels, roles.train)) >= 1
    assert min(_counts(labels, roles.test)) >= 1


def test_membership_depends_on_class_and_rank_in_it_alone() -> None:
    labels = _labels(3)
    roles = assign_roles(labels, splits=None, seed=5)
    budget = label_budget(labels, roles.train, per_class=3, draw=2, seed=5)

    # The same images with unlabelled ones and a new class put between them, in front and behind.
    spread = np.full(2 * len(labels) + 7, -1)
    positions = 3 + 2 * np.arange(len(labels))
    spread[positions] = labels
    spread[positions[:20] + 1] = 3
    again = assign_roles(spread, splits=None, seed=5)
    budget_again = label_budget(spread, again.train[::-1], per_class=3, draw=2, seed=5)

    np.testing.assert_array_equal(again.test[spread[again.test] < 3], positions[roles.test])
    np.testing.assert_array_equal(budget_again[spread[budget_again] < 3], positions[budget])


def test_draws_differ_between_seeds_draws_and_purposes() -> None:
    labels = np.repeat([0, 1], 200)
    everything = np.arange(400)
    sets = [
        assign_roles(labels, splits=None, test_share=0.5, seed=0).test,
        assign_roles(labels, splits=None, test_share=0.5, seed=1).test,
        label_budget(labels, everything, per_class=100, draw=0, seed=0),
        label_budget(labels, everything, per_class=100, draw=1, seed=0),
        label_budget(labels, everything, per_class=100, draw=0, seed=1),
        carve_val(labels, everything, share=0.5, seed=0, draw=0)[1],
        carve_val(labels, everything, share=0.5, seed=0, draw=1)[1],
    ]
    # The two classes, and any two sets, share about half of their 100 images a class.
    overlaps = [len(np.intersect1d(a, b)) for number, a in enumerate(sets) for b in sets[:number]]
    overlaps += [2 * len(np.intersect1d(s[s < 200], s[s >= 200] - 200)) for s in sets]
    assert min(overlaps) > 60
    assert max(overlaps) < 140


def test_splits_of_the_data_are_taken_as_they_are() -> None:
    labels = np.array([0, 1, -1, 0, 1, 0, 1, -1, 0])
    splits = np.array(["train", "train", "train", "valid", "valid", "test", "test", "test", "extra"])

    roles = assign_roles(labels, splits=splits, val_split="valid", seed=0)

    assert (roles.train.tolist(), roles.val.tolist(), roles.test.tolist()) == ([0, 1], [3, 4], [5, 6])


def test_no_test_split_draws_from_the_training_split_alone() -> None:
    labels = np.tile([0, 1], 30)
    splits = _splits(("train", 20), ("other", 40))
    roles = assign_roles(labels, splits=splits, test_split=None, seed=0)
    assert _counts(labels, roles.test) == [2, 2]
    np.testing.assert_array_equal(np.sort(np.r_[roles.train, roles.test]), np.arange(20))


def test_empty_split_names_mean_no_splits() -> None:
    labels = _labels(0)
    without = assign_roles(labels, splits=None, seed=4)
    assert assign_roles(labels, splits=np.full(len(labels), ""), seed=4).fingerprint() == without.fingerprint()


def test_fingerprint_tells_any_change_of_roles_apart() -> None:
    def fingerprint(train: list[int], val: list[int], test: list[int]) -> str:
        return Roles(*(np.array(part, dtype=np.int64) for part in (train, val, test))).fingerprint()

    seen = {
        fingerprint([0, 1, 2], [], [3]),
        fingerprint([0, 1], [2], [3]),
        fingerprint([0, 1], [], [2, 3]),
        fingerprint([0, 1, 2], [3], []),
        fingerprint([0, 1, 4], [], [3]),
    }
    assert len(seen) == 5
    # Golden: a recorded fingerprint must mean the same roles in years to come, on any machine.
    assert fingerprint([0, 1, 2], [], [3]).startswith("a0020f1b43046e03")


def test_an_image_cannot_hold_two_roles() -> None:
    with pytest.raises(AssertionError, match="two roles"):
        Roles(train=np.array([0, 1]), val=np.array([], np.int64), test=np.array([1]))


@pytest.mark.parametrize("seed", range(10))
def test_budgets_are_stratified_and_nested_within_a_draw(seed: int) -> None:
    labels = _labels(seed)
    candidates = np.flatnonzero(labels >= 0)[::2]
    smallest_class = min(_counts(labels, candidates))
    inner = np.array([], np.int64)
    for per_class in range(1, smallest_class + 1):
        outer = label_budget(labels, candidates, per_class=per_class, draw=seed, seed=1)
        assert _counts(labels, outer) == [per_class] * 3
        assert set(inner) <= set(outer) <= set(candidates)
        inner = outer


def test_share_budgets_round_and_keep_one_and_nest_with_counts() -> None:
    labels = _labels(0)
    candidates = np.flatnonzero(labels >= 0)
    assert _counts(labels, label_budget(labels, candidates, per_class=0.1, draw=0, seed=0)) == [4, 3, 1]
    assert _counts(labels, label_budget(labels, candidates, per_class=0.001, draw=0, seed=0)) == [1, 1, 1]
    np.testing.assert_array_equal(label_budget(labels, candidates, per_class=1.0, draw=0, seed=0), candidates)
    share = label_budget(labels, candidates, per_class=0.5, draw=0, seed=0)
    assert set(label_budget(labels, candidates, per_class=5, draw=0, seed=0)) <= set(share)


def test_carved_val_stays_inside_the_budget_and_leaves_single_labels_in_train() -> None:
    labels = _labels(0, counts=(40, 25, 2, 1))
    budget = np.flatnonzero(labels >= 0)
    train, val = carve_val(labels, budget, seed=0, draw=0)
    assert _counts(labels, val) == [8, 5, 1, 0]
    np.testing.assert_array_equal(np.sort(np.r_[train, val]), budget)


def test_a_budget_that_cannot_be_met_names_class_count_and_the_largest_possible() -> None:
    labels = _labels(0)
    candidates = np.flatnonzero(labels >= 0)
    with pytest.raises(UserError, match=r"10 labels of class 'rose' .* the 11 per class .* possible here is 10 "):
        label_budget(labels, candidates, per_class=11, draw=0, seed=0, class_names=["daisy", "lily", "rose"])
    # The first class that falls short is named, but the limit is set by the smallest one.
    with pytest.raises(UserError, match=r"25 labels of class 1 .* possible here is 10 "):
        label_budget(labels, candidates, per_class=30, draw=0, seed=0)


@pytest.mark.parametrize("per_class", [0, -1, 0.0, 1.5, -0.1, float("nan")])
def test_impossible_budgets_are_refused(per_class: float) -> None:
    with pytest.raises(UserError, match="whole number of labels per class"):
        label_budget(np.array([0, 1]), np.array([0, 1]), per_class=per_class, draw=0, seed=0)


@pytest.mark.parametrize(
    ("labels", "splits", "settings", "message"),
    [
        ([-1, -1], None, {}, "None of the images has a label"),
        ([0, 0, 0, -1], None, {}, r"All labels are of one class \(class 'cat'\)"),
        ([0, 1, 2], None, {}, "no class has two labelled images"),
        ([0, 0, 1, 1], None, {"test_share": 1.0}, r"test_share=1\.0 is not possible"),
        ([0, 0, 1, 1], None, {"val_split": "val"}, "val_split='val' names a split, but the data has none"),
        (
            [0, 1, 0, 1],
            "train train dev dev",
            {},
            r"no split called 'test'; its splits are dev, train: set `test_split=`",
        ),
        ([0, 1, 0, 1], "fit fit test test", {}, r"no split called 'train'; .* set `train_split=`"),
        ([0, 1, 0, 1], "train train test test", {"val_split": "val"}, r"no split called 'val'; .* set `val_split=`"),
        ([0, 1, 0, 1], "train train test test", {"test_split": "train"}, "One split cannot hold two roles"),
        ([-1, -1, 0, 1], "train train test test", {}, "None of the training images has a label"),
        ([0, 1, -1, -1], "train train test test", {}, "None of the test images has a label"),
        (
            [0, 0, 1, 2],
            "train train test test",
            {},
            r"test part holds classes 'dog', 'owl', of which .* 'train' has no",
        ),
        (
            [0, 1, 0, 2, 0],
            "train train val val test",
            {"val_split": "val"},
            "val part holds class 'owl', of which the training split 'train' has no label",
        ),
        (
            [0, 1, 2, 0, 0],
            "train train train val test",
            {"val_split": "val"},
            "val split 'val' has no label of classes 'dog', 'owl'",
        ),
    ],
)
def test_each_mistake_has_its_sentence(
    labels: list[int], splits: str | None, settings: dict[str, float | str], message: str
) -> None:
    names = None if splits is None else np.array(splits.split())
    with pytest.raises(UserError, match=message):
        assign_roles(np.array(labels), splits=names, seed=0, class_names=["cat", "dog", "owl"], **settings)


def test_damaged_images_are_replaced_and_nothing_else_of_a_draw_changes():
    labels = np.repeat(np.arange(2), 10)
    candidates = np.arange(20)
    whole = label_budget(labels, candidates, per_class=4, draw=1, seed=3)
    larger = label_budget(labels, candidates, per_class=5, draw=1, seed=3)
    lost = whole[1]
    mended = label_budget(labels, candidates, per_class=4, draw=1, seed=3, damaged=np.array([lost]))
    (new,) = set(mended) - set(whole)
    assert set(whole) - set(mended) == {lost}
    assert new in set(larger) - set(whole), "the next of its class in the draw's order"
    with pytest.raises(UserError, match=r"Of 10 images of class 0, 9 can be read, fewer than the 10 asked for"):
        label_budget(labels, candidates, per_class=10, draw=1, seed=3, damaged=np.array([lost]))
