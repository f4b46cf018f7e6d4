"""Pseudo-labels: the guard's exact counts, and the choice as a slow reference makes it."""

import numpy as np
import pytest

from ssl_ft.transfer.pseudo_labels import choose_pseudo_labels


def shares_of(guesses: list[int], sureness: list[float], classes: int = 3) -> np.ndarray:
    """Rows with the given class at the given probability, the rest shared by the others."""
    rows = [[(1 - p) / (classes - 1)] * classes for p in sureness]
    for row, cls, p in zip(rows, guesses, sureness, strict=True):
        row[cls] = p
    return np.array(rows)


def slow_choice(shares: np.ndarray, threshold: float, labelled: list[int], ratio: float) -> dict[int, int]:
    """Row -> label, by going through all rows from the surest on."""
    could_have = list(labelled)
    for row in shares:
        if max(row) >= threshold:
            could_have[int(np.argmax(row))] += 1
    most = int(ratio * min(could_have) // 1)
    have, chosen = list(labelled), {}
    for row in sorted(range(len(shares)), key=lambda r: (-max(shares[r]), r)):
        cls = int(np.argmax(shares[row]))
        if max(shares[row]) >= threshold and have[cls] < most:
            have[cls] += 1
            chosen[row] = cls
    return chosen


def test_exact_counts():
    guesses, sureness = [0] * 10 + [1] * 4 + [2] * 2, [0.99 - 0.01 * k for k in range(10)] + [0.95] * 4 + [0.9, 0.5]
    chosen = choose_pseudo_labels(
        shares_of(guesses, sureness), threshold=0.85, num_labelled=np.array([2, 2, 2]), most_ratio=2.0
    )
    # The rarest could have 2 + 1; so none has more than 6: 4 of ten, all four, and the one.
    assert chosen.num_sure.tolist() == [10, 4, 1]
    assert np.bincount(chosen.labels).tolist() == [4, 4, 1]
    assert chosen.rows.tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14]


def test_the_guard_counts_true_labels_and_never_below_none():
    shares = shares_of([0, 0, 1], [0.9, 0.95, 0.9])
    chosen = choose_pseudo_labels(shares, threshold=0.5, num_labelled=np.array([9, 1, 2]), most_ratio=1.5)
    assert chosen.labels.tolist() == [1]  # at most 3 of a class, and class 0 has 9
    assert not len(choose_pseudo_labels(shares, threshold=0.96, num_labelled=np.array([1, 1, 1]), most_ratio=9).rows)


def test_without_any_imbalance_allowed_all_end_equal():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet([0.3, 0.2, 0.1], size=300)
    chosen = choose_pseudo_labels(shares, threshold=0.5, num_labelled=np.array([4, 5, 6]), most_ratio=1.0)
    assert len(set((np.array([4, 5, 6]) + np.bincount(chosen.labels, minlength=3)).tolist())) == 1


@pytest.mark.parametrize("seed", range(10))
def test_as_the_slow_reference(seed):
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([0.6] * 4, size=80).round(2)  # rounded, so that there are ties
    labelled, threshold, ratio = generator.integers(1, 8, 4), generator.uniform(0.3, 0.95), generator.uniform(1, 3)
    found = choose_pseudo_labels(shares, threshold=threshold, num_labelled=labelled, most_ratio=ratio)
    assert dict(zip(found.rows.tolist(), found.labels.tolist(), strict=True)) == slow_choice(
        shares, threshold, labelled.tolist(), ratio
    )
