"""The judgement: separable is 1, shuffled labels are at chance, test labels change no prediction, budgets add up."""

import numpy as np
import pytest

from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate import judge as judging
from ssl_ft.evaluate.judge import Budget, Judgement, check_budgets, draw_budgets, judge

CLASSES, COUNT = 3, 240
NAMES = ("ant", "bee", "cat")
ROLES = Roles(train=np.arange(0, 150), val=np.arange(150, 180), test=np.arange(180, 240))


def features_and_labels(seed: int, *, distance: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(COUNT, dtype=np.int64) % CLASSES
    centres = distance * np.eye(CLASSES, 6)
    return (centres[labels] + generator.normal(size=(COUNT, 6))).astype(np.float32), labels


def judged(
    features: np.ndarray, labels: np.ndarray, *, budgets: tuple[Budget, ...], draws: int = 4, k: int = 5, **more: int
) -> list[Judgement]:
    return judge(
        features, labels, ROLES, budgets=budgets, draws=draws, num_neighbours=k, num_classes=CLASSES,
        class_names=NAMES, seed=more.get("seed", 0),
    )  # fmt: skip


def accuracy_of(judgement: Judgement) -> float:
    (found,) = [e for e in judgement.estimates if e.name == "accuracy"]
    assert found.low <= found.value <= found.high
    assert found.n == len(ROLES.test)
    return found.value


def test_separable_features_reach_one_at_every_budget():
    features, labels = features_and_labels(0, distance=60.0)
    features = features[:, :CLASSES]  # without the columns of noise, which one label a class could not rule out
    for judgement in judged(features, labels, budgets=(1, 5, 0.1, "all")):
        assert accuracy_of(judgement) == 1.0
        assert judgement.knn is None or judgement.knn.value == 1.0


def test_shuffled_labels_score_at_chance():
    """Anything above chance would mean that test labels leak into the probe or into kNN."""
    features, labels = features_and_labels(1, distance=60.0)
    scores, votes = [], []
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(labels)
        for judgement in judged(features, shuffled, budgets=(10, "all"), seed=seed):
            scores.append(accuracy_of(judgement))
            assert judgement.knn is not None
            votes.append(judgement.knn.value)
    # 60 test images a seed: five seeds' mean has a standard error of at most 0.028 about 1/3.
    assert abs(np.mean(scores) - 1 / 3) < 0.09
    assert abs(np.mean(votes) - 1 / 3) < 0.09


def test_test_labels_and_other_test_images_change_no_prediction():
    features, labels = features_and_labels(2, distance=1.0)
    before = judged(features, labels, budgets=(2, "all"))
    blind = labels.copy()
    blind[ROLES.test] = 0
    changed = features.copy()
    changed[ROLES.test[30:]] *= 100
    for one, other, third in zip(
        before, judged(features, blind, budgets=(2, "all")), judged(changed, labels, budgets=(2, "all")), strict=True
    ):
        assert np.array_equal(one.predictions, other.predictions)
        assert np.array_equal(one.predictions[:, :30], third.predictions[:, :30])


def test_budgets_count_every_label_and_lie_inside_one_another():
    features, labels = features_and_labels(3, distance=2.0)
    two, ten, share, everything = judged(features, labels, budgets=(2, 10, 0.2, "all"), draws=3)
    assert [j.num_labels for j in (two, ten, share, everything)] == [6, 30, 30, 180]
    assert [len(j.predictions) for j in (two, ten, share, everything)] == [3, 3, 3, 1]
    for draw in range(3):
        drawn = [label_budget(labels, ROLES.train, per_class=n, draw=draw, seed=0) for n in (2, 10)]
        assert set(drawn[0]) < set(drawn[1]) < set(ROLES.train)


def test_a_draw_is_fitted_on_its_own_labels_alone():
    """Labels outside the budget may be anything: this is how many labels a score really took."""
    features, labels = features_and_labels(4, distance=1.5)
    drawn = label_budget(labels, ROLES.train, per_class=4, draw=0, seed=0)
    (before,) = judged(features, labels, budgets=(4,), draws=1)
    # Swapped within the class, so that the draw stays the same and only what it must not see changes.
    hidden = np.setdiff1d(ROLES.train, drawn)
    changed = features.copy()
    changed[hidden] = features[hidden[np.random.default_rng(0).permutation(len(hidden))]]
    (after,) = judged(changed, labels, budgets=(4,), draws=1)
    assert np.array_equal(before.predictions, after.predictions)


def test_all_includes_the_val_role():
    features, labels = features_and_labels(5, distance=0.5)
    (before,) = judged(features, labels, budgets=("all",))
    changed = features.copy()
    changed[ROLES.val] += 50 * np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    (after,) = judged(changed, labels, budgets=("all",))
    assert not np.array_equal(before.predictions, after.predictions)


def test_knn_is_none_where_a_budget_has_fewer_labels_than_neighbours():
    features, labels = features_and_labels(6, distance=2.0)
    short, exact, _ = judged(features, labels, budgets=(2, 3, "all"), k=9)
    assert short.knn is None
    assert exact.knn is not None
    assert exact.knn.name == "accuracy"


def test_draws_differ_and_repeat_with_the_seed():
    features, labels = features_and_labels(7, distance=1.0)
    (first,), (again,), (other,) = (judged(features, labels, budgets=(2,), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.predictions, again.predictions)
    assert len({row.tobytes() for row in first.predictions}) == 4
    assert not np.array_equal(first.predictions, other.predictions)


def test_progress_is_told_after_each_fit():
    features, labels = features_and_labels(8, distance=2.0)
    told = []
    judge(
        features, labels, ROLES, budgets=(1, 2, "all"), draws=3, num_neighbours=5, num_classes=CLASSES,
        class_names=NAMES, seed=0, on_progress=lambda: told.append(1),
    )  # fmt: skip
    assert len(told) == 2 * 3 + 1


def test_budgets_the_data_cannot_pay_are_refused_before_any_work():
    _, labels = features_and_labels(9, distance=1.0)
    check_budgets((1, 50, "all"), labels, ROLES, class_names=NAMES, seed=0)
    with pytest.raises(UserError, match=r"50 labels of class 'ant'"):
        check_budgets((1, 51), labels, ROLES, class_names=NAMES, seed=0)
    with pytest.raises(UserError, match="names a budget twice"):
        check_budgets((1, 5, 1), labels, ROLES, class_names=NAMES, seed=0)


def test_large_training_parts_are_standardised_by_some_and_need_no_others(monkeypatch):
    monkeypatch.setattr(judging, "MOST_STANDARDISING", 20)
    features, labels = features_and_labels(10, distance=1.5)
    drawn = draw_budgets(labels, ROLES, budgets=(2, 4), draws=3, class_names=NAMES, seed=0)
    assert len(set(drawn.standardising)) == 20
    assert set(drawn.standardising) < set(ROLES.train)
    assert not np.array_equal(drawn.standardising, np.arange(20))
    assert [[len(one) for one in taken] for taken in drawn.taken] == [[6] * 3, [12] * 3]
    needed = drawn.needed()
    assert len(needed) < len(ROLES.train)
    before = judged(features, labels, budgets=(2, 4), draws=3)
    # What is not needed may be anything at all.
    blind = np.full_like(features, np.nan)
    kept = np.concatenate([needed, ROLES.test])
    blind[kept] = features[kept]
    after = judged(blind, labels, budgets=(2, 4), draws=3)
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.predictions, other.predictions)
    # What else is asked for does not matter either.
    (alone,) = judged(features, labels, budgets=(4,), draws=3)
    assert np.array_equal(alone.predictions, before[1].predictions)


def test_small_training_parts_are_standardised_by_all():
    _, labels = features_and_labels(11, distance=1.5)
    drawn = draw_budgets(labels, ROLES, budgets=("all",), draws=3, class_names=NAMES, seed=0)
    assert np.array_equal(drawn.standardising, ROLES.train)
    assert np.array_equal(drawn.needed(), np.arange(180))
