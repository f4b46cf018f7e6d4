"""Which of a teacher's guesses become labels: sure enough, and no class far ahead of the others. Arrays in, arrays out.

Teacher, student and rounds are in `selftrain.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Images that were given a label by a teacher.

    Attributes:
        rows: int64 [P], ascending rows of the shares they were chosen by.
        labels: int64 [P], their classes.
        num_sure: int64 [C], guesses of each class at or above the threshold, before the guard.
    """

    rows: Indices
    labels: Indices
    num_sure: Indices


def choose_pseudo_labels(
    shares: NDArray[np.floating], *, threshold: float, num_labelled: Indices, most_ratio: float
) -> PseudoLabels:
    """Choose guesses at or above a confidence, the surest of each class first, as many as balance allows.

    The guard: counting true and pseudo-labels together, no class has more than `most_ratio` times as many as the class
    that has fewest could have at this threshold, rounded down; a class whose true labels alone are more gets no
    pseudo-label. Without it a teacher that leans to some class teaches its student to lean further. Equally sure
    images are taken by lower row.

    Args:
        shares: float [M, C], a teacher's class probabilities.
        threshold: least probability of the guessed class, in (0, 1].
        num_labelled: int64 [C], true labels that are trained on beside.
        most_ratio: 1 or more.
    """
    guesses, sureness = shares.argmax(1), shares.max(1)
    is_sure = sureness >= threshold
    num_sure = np.bincount(guesses[is_sure], minlength=shares.shape[1]).astype(np.int64)
    most = int(np.floor(most_ratio * (num_labelled + num_sure).min()))
    taken = []
    for cls in range(shares.shape[1]):
        rows = np.flatnonzero(is_sure & (guesses == cls))
        surest_first = rows[np.argsort(-sureness[rows], kind="stable")]
        taken.append(surest_first[: max(0, most - int(num_labelled[cls]))])
    rows = np.sort(np.concatenate(taken)).astype(np.int64)
    return PseudoLabels(rows, guesses[rows].astype(np.int64), num_sure)
