"""The linear probe against scikit-learn and its own optimality conditions; what the choice of strength may look at."""

import time

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssl_ft.data.splits import label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate import probe
from ssl_ft.evaluate.probe import (
    DEFAULT_STRENGTH,
    STRENGTHS,
    Features,
    Labels,
    assign_folds,
    choose_strength,
    fit_linear,
    probe_budget,
    probe_draws,
    standardise,
)


def _blobs(
    seed: int, *, num_rows: int, num_features: int, num_classes: int, spread: float = 1.0
) -> tuple[Features, Labels]:
    """Classes as overlapping clouds of uneven size, features of uneven scale."""
    generator = np.random.default_rng(seed)
    labels = np.sort(np.r_[np.arange(num_classes), generator.integers(num_classes, size=num_rows - num_classes)])
    centres = spread * generator.standard_normal((num_classes, num_features))
    features = centres[labels] + generator.standard_normal((num_rows, num_features))
    return (features * generator.uniform(0.1, 10, num_features) + 3.0).astype(np.float32), labels


SIZES = [(60, 8, 3), (30, 50, 4), (40, 40, 2), (9, 200, 5), (25, 1, 3)]


@pytest.mark.parametrize(("num_rows", "num_features", "num_classes"), SIZES)
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_equals_scikit_learn(num_rows: int, num_features: int, num_classes: int, strength: float) -> None:
    features, labels = _blobs(0, num_rows=num_rows, num_features=num_features, num_classes=num_classes)
    # The few labelled rows are not centred under the mean of all rows.
    scaler = StandardScaler().fit(
        _blobs(9, num_rows=500, num_features=num_features, num_classes=2)[0].astype(np.float64)
    )
    mean, scale = scaler.mean_, scaler.scale_
    found = fit_linear(features, labels, strength=strength, num_classes=num_classes, mean=mean, scale=scale)

    # With two classes scikit-learn fits one column w for [−w/2, +w/2], whose squared norm is half of w's.
    penalty_factor = 2 if num_classes == 2 else 1
    # Its default solver stops early on features that are not centred; Newton's method does not.
    reference = LogisticRegression(
        C=penalty_factor / (strength * num_rows), solver="newton-cg", tol=1e-10, max_iter=999
    )
    standard = scaler.transform(features.astype(np.float64))
    reference.fit(standard, labels)

    weights, bias = reference.coef_.T, reference.intercept_
    if num_classes == 2:
        weights, bias = weights * [-0.5, 0.5], bias * [-0.5, 0.5]
    np.testing.assert_allclose(found.weights, weights, atol=1e-5)
    # Compared where the rows are: at the far origin the bias also sums up the rounding of all weights.
    centre = standard.mean(axis=0)
    np.testing.assert_allclose(centre @ found.weights + found.bias, centre @ weights + bias, atol=1e-5)
    np.testing.assert_allclose(found.predict_proba(features), reference.predict_proba(standard), atol=1e-5)


@pytest.mark.parametrize(("num_rows", "num_features", "num_classes"), SIZES)
@pytest.mark.parametrize("strength", [STRENGTHS[0], DEFAULT_STRENGTH, STRENGTHS[-1]])
def test_gradient_of_the_stated_objective_vanishes(
    num_rows: int, num_features: int, num_classes: int, strength: float
) -> None:
    features, labels = _blobs(1, num_rows=num_rows, num_features=num_features, num_classes=num_classes)
    mean, scale = standardise(features)
    found = fit_linear(features, labels, strength=strength, num_classes=num_classes, mean=mean, scale=scale)
    standard = (features.astype(np.float64) - mean) / scale

    errors = softmax(standard @ found.weights + found.bias, axis=1) - np.eye(num_classes)[labels]
    assert np.abs(standard.T @ errors / num_rows + strength * found.weights).max() < 1e-6
    assert np.abs(errors.mean(axis=0)).max() < 1e-6
    # An overflow or a swapped sign can leave a vanishing gradient at a bad point: the zero solution must be beaten.
    objective = -log_softmax(standard @ found.weights + found.bias, axis=1)[np.arange(num_rows), labels].mean()
    assert objective + strength / 2 * (found.weights**2).sum() < np.log(num_classes)


def test_separable_classes_are_told_apart_and_many_rows_need_no_folds() -> None:
    features, labels = _blobs(2, num_rows=2600, num_features=20, num_classes=4, spread=5.0)
    mean, scale = standardise(features)
    fit, rest = np.arange(0, 2600, 1), np.arange(0, 2600, 7)
    found = probe_budget(features[fit], labels[fit], num_classes=4, mean=mean, scale=scale, seed=0)
    assert np.array_equal(found.predict_proba(features[rest]).argmax(axis=1), labels[rest])


@pytest.mark.parametrize("seed", range(10))
def test_shuffled_labels_score_at_chance(seed: int) -> None:
    """Leak alarm: nothing about the held-out images may reach the probe, so real structure cannot help."""
    features, labels = load_digits(return_X_y=True)
    labels = np.random.default_rng(seed).permutation(labels)
    mean, scale = standardise(features)
    found = probe_budget(features[:200], labels[:200], num_classes=10, mean=mean, scale=scale, seed=seed)
    is_right = found.predict_proba(features[200:]).argmax(axis=1) == labels[200:]
    # Five standard errors of 1597 images at 0.1.
    assert abs(is_right.mean() - 0.1) < 0.0375
    # Nothing to learn: a strong penalty must win.
    assert found.strength >= 1.0


def test_chosen_strength_is_close_to_the_best_on_new_images() -> None:
    features, labels = load_digits(return_X_y=True)
    mean, scale = standardise(features)
    lost = []
    for draw in range(3):
        budget = label_budget(labels, np.arange(900), per_class=5, draw=draw, seed=0)
        settings = {"num_classes": 10, "mean": mean, "scale": scale}
        chosen = probe_budget(features[budget], labels[budget], seed=draw, **settings).strength
        scores = {}
        for strength in STRENGTHS:
            found = fit_linear(features[budget], labels[budget], strength=strength, **settings)
            scores[strength] = (found.predict_proba(features[900:]).argmax(axis=1) == labels[900:]).mean()
        lost.append(max(scores.values()) - scores[chosen])
    # A wrong end of the grid loses five points.
    assert np.mean(lost) < 0.01


def test_strength_is_the_one_with_the_least_log_loss_on_held_out_labels() -> None:
    """Reference: every fold and strength fitted on its own by `fit_linear`, no shared rotation, no early end."""
    features, labels = _blobs(3, num_rows=90, num_features=30, num_classes=3, spread=0.4)
    mean, scale = standardise(features)
    fold_of = assign_folds(labels, folds=5, seed=4)
    losses = {}
    for strength in STRENGTHS:
        losses[strength] = 0.0
        for fold in range(5):
            fit, held_out = fold_of != fold, fold_of == fold
            found = fit_linear(features[fit], labels[fit], strength=strength, num_classes=3, mean=mean, scale=scale)
            shares = found.predict_proba(features[held_out])[np.arange(held_out.sum()), labels[held_out]]
            losses[strength] -= np.log(shares).sum()
    chosen = choose_strength(features, labels, num_classes=3, mean=mean, scale=scale, seed=4)
    assert chosen == min(losses, key=losses.__getitem__)
    # Neither end of the grid, or the test would show little.
    assert STRENGTHS[-1] < chosen < STRENGTHS[0]


def test_given_val_labels_alone_decide() -> None:
    """Val labels that contradict training call for the strongest penalty, agreeing ones do not."""
    features, labels = _blobs(4, num_rows=80, num_features=10, num_classes=2, spread=2.0)
    mean, scale = standardise(features)
    settings = {"num_classes": 3, "mean": mean, "scale": scale, "seed": 0}
    agreeing = choose_strength(features, labels, val=(features, labels), **settings)
    contradicting = choose_strength(features, labels, val=(features, 1 - labels), **settings)
    assert contradicting == max(STRENGTHS)
    assert agreeing == min(STRENGTHS)
    # Rows of a class unknown to training are infinitely wrong at any strength: left aside.
    mixed = (np.r_[features, features], np.r_[labels, np.full(80, 2)])
    assert choose_strength(features, labels, val=mixed, **settings) == agreeing
    assert choose_strength(features, labels, val=(features, np.full(80, 2)), **settings) == DEFAULT_STRENGTH


def test_ties_go_to_the_stronger_penalty() -> None:
    # Constant features: every strength predicts the class shares.
    features, labels = np.ones((20, 3)), np.arange(20) % 2
    mean, scale = standardise(features)
    settings = {"num_classes": 2, "mean": mean, "scale": scale, "seed": 0}
    assert choose_strength(features, labels, strengths=(0.1, 1.0, 0.5), **settings) == 1.0


def test_nothing_to_hold_out_gives_the_default() -> None:
    features, labels = _blobs(0, num_rows=6, num_features=20, num_classes=6)
    mean, scale = standardise(features)
    assert probe_budget(features, labels, num_classes=6, mean=mean, scale=scale, seed=0).strength == DEFAULT_STRENGTH


@pytest.mark.parametrize("seed", range(10))
def test_folds_hold_each_label_out_once_and_never_a_whole_class(seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 2, 5, 6], [23, 7, 6, 1]))
    fold_of = assign_folds(labels, folds=5, seed=seed)
    # A label has one fold, so it is held out exactly once; the single label of class 6 never.
    assert np.array_equal(fold_of == -1, labels == 6)
    table = np.array([[np.sum((fold_of == fold) & (labels == cls)) for cls in (0, 2, 5)] for fold in range(5)])
    assert (table.max(axis=0) - table.min(axis=0) <= 1).all()
    assert table.min() >= 1
    # All folds weigh the same: the left-overs of the classes are spread.
    assert np.ptp(table.sum(axis=1)) <= 1
    assert np.array_equal(assign_folds(labels, folds=5, seed=seed), fold_of)


def test_folds_are_as_many_as_the_smallest_class_can_fill() -> None:
    labels = np.repeat([0, 1], [30, 3])
    assert sorted(set(assign_folds(labels, folds=5, seed=0))) == [0, 1, 2]


def test_absent_classes_have_probability_zero() -> None:
    features, labels = _blobs(0, num_rows=30, num_features=5, num_classes=3)
    labels = np.array([1, 4, 6])[labels]
    mean, scale = standardise(features)
    found = fit_linear(features, labels, strength=0.1, num_classes=8, mean=mean, scale=scale)
    probabilities = found.predict_proba(features)
    assert probabilities.shape == (30, 8)
    assert (probabilities[:, [0, 2, 3, 5, 7]] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)


def test_constant_features_count_for_nothing() -> None:
    features, labels = _blobs(0, num_rows=40, num_features=4, num_classes=3)
    rounding = np.float32(7.1) * (1 + np.float32(1e-7) * (np.arange(40) % 2))
    padded = np.c_[features, np.zeros(40), rounding].astype(np.float32)
    mean, scale = standardise(padded)
    assert scale[4:].tolist() == [1.0, 1.0]
    with_constants = fit_linear(padded, labels, strength=0.01, num_classes=3, mean=mean, scale=scale)
    without = fit_linear(features, labels, strength=0.01, num_classes=3, mean=mean[:4], scale=scale[:4])
    np.testing.assert_allclose(with_constants.weights[:4], without.weights, atol=1e-5)
    np.testing.assert_allclose(with_constants.weights[4:], 0.0, atol=1e-4)


def test_standardised_reference_has_mean_zero_and_deviation_one() -> None:
    features, _ = _blobs(0, num_rows=50, num_features=6, num_classes=2)
    mean, scale = standardise(features)
    standard = (features - mean) / scale
    np.testing.assert_allclose([standard.mean(axis=0), standard.std(axis=0)], [np.zeros(6), np.ones(6)], atol=1e-12)


def test_mistakes_of_a_user_are_sentences() -> None:
    features, labels = _blobs(0, num_rows=20, num_features=5, num_classes=2)
    mean, scale = standardise(features)
    settings = {"num_classes": 2, "mean": mean, "scale": scale}
    with pytest.raises(UserError, match=r"All 20 labels .* one class \(1\)"):
        fit_linear(features, np.ones(20, np.int64), strength=1.0, **settings)
    features[3, 1] = np.nan
    with pytest.raises(UserError, match="features of 1 of 20 images are not finite"):
        probe_budget(features, labels, seed=0, **settings)


def test_choosing_and_refitting_a_small_budget_is_quick() -> None:
    """100 labels of 512 features in 10 classes: about 45 ms; the bound allows for a slow, shared machine."""
    features, labels = _blobs(0, num_rows=100, num_features=512, num_classes=10, spread=0.2)
    mean, scale = standardise(features)
    started = time.process_time()
    probe_budget(features, labels, num_classes=10, mean=mean, scale=scale, seed=0)
    assert time.process_time() - started < 0.5


def test_large_budgets_choose_on_a_fifth_of_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = _blobs(0, num_rows=120, num_features=5, num_classes=2)
    mean, scale = standardise(features)
    seen = []
    monkeypatch.setattr(probe, "_FOLDS_UP_TO", 100)
    monkeypatch.setattr(probe, "assign_folds", lambda *_, **__: seen.append("folds"))
    whole = probe_budget(features, labels, num_classes=2, mean=mean, scale=scale, seed=0)
    assert not seen
    # The refit takes all labels back in.
    again = fit_linear(features, labels, strength=whole.strength, num_classes=2, mean=mean, scale=scale)
    np.testing.assert_array_equal(whole.weights, again.weights)


@pytest.mark.parametrize("num_features", [12, 150])
def test_draws_together_are_draws_one_by_one(num_features: int) -> None:
    features, labels = _blobs(5, num_rows=120, num_features=num_features, num_classes=4, spread=0.15)
    mean, scale = standardise(features)
    settings = {"num_classes": 6, "mean": mean, "scale": scale}
    orders = [np.random.default_rng(seed).permutation(120) for seed in range(3)]
    draws = [(order[:80], order[80:]) for order in orders]
    # A draw without a class: its probability is 0 there, and val labels of that class say nothing.
    draws[1] = (draws[1][0][labels[draws[1][0]] != 2], draws[1][1])
    found = probe_draws(features, labels, draws, **settings)
    for together, (train, val) in zip(found, draws, strict=True):
        given = (features[val], labels[val])
        strength = choose_strength(features[train], labels[train], val=given, seed=0, **settings)
        alone = fit_linear(features[train], labels[train], strength=strength, **settings)
        assert together.strength == strength
        np.testing.assert_allclose(together.predict_proba(features), alone.predict_proba(features), atol=1e-5)
    assert (found[1].predict_proba(features)[:, [2, 4, 5]] == 0).all()
    with pytest.raises(UserError, match=r"All 5 labels .* one class \(3\)"):
        probe_draws(features, labels, [(np.flatnonzero(labels == 3)[:5], orders[0])], **settings)
