"""Two-sample tests: values as by slow references in float64, exact false alarms, and power where there is a shift."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ssl_ft.evaluate.two_sample import (
    FEWEST_IMAGES,
    classifier_test,
    compare,
    frechet_distance,
    mmd_squared,
    pool,
)


def slow_mmd(x: np.ndarray, y: np.ndarray, width: float) -> float:
    """Term by term, from the definition of the unbiased estimate."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * width**2)))

    n, m = len(x), len(y)
    own_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(k(a, b) for a in x for b in y) / (n * m)
    return own_x + own_y - 2 * across


def slow_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """From the formula, with a matrix square root of the product itself."""
    gap = x.mean(0) - y.mean(0)
    one, other = np.cov(x.T).reshape(x.shape[1], -1), np.cov(y.T).reshape(x.shape[1], -1)
    return float(gap @ gap + np.trace(one + other - 2 * np.real(sqrtm(one @ other))))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (7, 5, 3), (30, 41, 6)])
def test_values_are_those_of_the_formulas(n, m, d):
    generator = np.random.default_rng(n)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) * 1.7 + 100.5
    assert mmd_squared(x, y - 100, width=1.3) == pytest.approx(slow_mmd(x, y - 100, 1.3), abs=1e-12)
    assert frechet_distance(x, y) == pytest.approx(slow_frechet(x, y), rel=1e-7, abs=1e-7)


def test_closed_forms():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 4))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    # Moved as a whole, the covariances cancel; stretched by 3 about its mean, (3 − 1)² of the variance is left.
    assert frechet_distance(x, x + 2.0) == pytest.approx(4 * 4.0)
    stretched = 3 * (x - x.mean(0)) + x.mean(0)
    assert frechet_distance(x, stretched) == pytest.approx(4 * np.var(x, axis=0, ddof=1).sum())
    # So far apart that nothing of one set is near the other: twice the mean kernel inside a set.
    inside = slow_mmd(x, x + 1e3, 1.0)
    assert mmd_squared(x, x + 1e3, width=1.0) == pytest.approx(inside)


def test_components_keep_distances_whichever_way_they_are_found():
    generator = np.random.default_rng(1)
    for shape in ((40, 9), (12, 300)):
        features = generator.normal(size=shape)
        found = pool(features, most_components=1000).components
        own = np.linalg.norm(features[0] - features[5]) / np.linalg.norm(features[1] - features[7])
        ratio = (found[0] - found[5]).norm() / (found[1] - found[7]).norm()
        assert float(ratio) == pytest.approx(own)
        assert float(found.square().sum(1).mean()) == pytest.approx(1)


def test_values_among_permutations_are_those_of_the_formulas():
    generator = np.random.default_rng(2)
    features = generator.normal(size=(60, 5))
    pooled, is_second = pool(features), np.arange(60) >= 25
    found = {o.name: o for o in compare(pooled, is_second, num_permutations=19, seed=0)}
    inputs = pooled.components.numpy()
    squared = ((inputs[:, None] - inputs[None]) ** 2).sum(2)[np.triu_indices(60, 1)]
    width = np.sqrt(np.sort(squared)[(len(squared) - 1) // 2])
    assert found["mmd"].value == pytest.approx(slow_mmd(inputs[:25], inputs[25:], width))
    assert found["frechet"].value == pytest.approx(slow_frechet(inputs[:25], inputs[25:]))
    assert found["mmd"].p_value * 20 == pytest.approx(round(found["mmd"].p_value * 20))


def test_false_alarms_are_as_rare_as_promised():
    """p-values of every test over random splits of one skewed set: no more than 5 % at or below 0.05."""
    generator = np.random.default_rng(3)
    features = np.exp(generator.normal(size=(60, 8)))
    pooled = pool(features)
    p_values: dict[str, list[float]] = {}
    for split in range(120):
        is_second = np.zeros(60, bool)
        is_second[generator.permutation(60)[:25]] = True
        for outcome in compare(pooled, is_second, num_permutations=39, seed=split):
            p_values.setdefault(outcome.name, []).append(outcome.p_value)
    for name, values in p_values.items():
        # 120 splits at a rate of exactly 5 %: 6 expected, 14 are exceeded once in 1000 times.
        assert np.sum(np.array(values) <= 0.05) <= 14, name
        # Permutations are exact, so their p-values are spread evenly; the classifier's two are doubled and cautious.
        assert np.mean(values) > 0.4, name


def test_shifts_are_found_by_the_test_made_for_them():
    generator = np.random.default_rng(4)
    x, is_second = generator.normal(size=(200, 10)), np.arange(200) >= 100
    moved, wider = x + is_second[:, None] * 0.8, x * (1 + is_second[:, None])
    by_name = {o.name: o for o in compare(pool(moved), is_second, num_permutations=199, seed=0)}
    assert all(o.p_value <= 0.01 for o in by_name.values())
    assert by_name["classifier"].value > 0.75
    # A classifier linear in the features sees no difference of spread; the distances do.
    by_name = {o.name: o for o in compare(pool(wider), is_second, num_permutations=199, seed=0)}
    assert by_name["mmd"].p_value <= 0.01
    assert by_name["frechet"].p_value <= 0.01


def test_the_classifier_is_not_fooled_by_unequal_sizes():
    generator = np.random.default_rng(5)
    is_second = np.arange(300) >= 270
    outcome = classifier_test(generator.normal(size=(300, 3)), is_second, seed=0)
    assert 0.3 < outcome.value < 0.7
    shifted = classifier_test(generator.normal(size=(300, 3)) + 3.0 * is_second[:, None], is_second, seed=0)
    assert shifted.value > 0.95
    assert shifted.p_value < 1e-6


def test_identical_images_are_no_shift():
    pooled = pool(np.ones((50, 4)))
    outcomes = compare(pooled, np.arange(50) >= 25, num_permutations=19, seed=0)
    assert all(outcome.p_value == 1.0 for outcome in outcomes)


def test_too_few_images_are_ours_to_refuse():
    with pytest.raises(AssertionError, match="too few"):
        compare(pool(np.ones((30, 2))), np.arange(30) >= 31 - FEWEST_IMAGES, num_permutations=19, seed=0)
