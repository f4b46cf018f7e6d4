"""Roles, budgets and val parts of images with multi-label or regression targets: targets in, indices out.

A budget is a number of labelled images in all, for there are no classes to count by. Every draw walks along one order
of the candidates, keyed by (seed, purpose, draw), so smaller budgets lie inside larger ones. Roles of classes, and the
`Roles` themselves, are in `splits`.

Regression: images are sorted by target (by the mean of their ranks where there are several) into ten groups of equal
size, and the order takes one of each group in turn. Multi-label: the order first gives every label a positive, the
rarest label first; then it goes on at random. Parts that are split off (test, val) take their share of every group, or
of every label's positives (iterative stratification, Sechidis et al. 2011).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ssl_ft.data.splits import Indices, Roles, check_split_names, rounded
from ssl_ft.data.targets import is_labelled
from ssl_ft.errors import UserError

# First word of a key, as in `splits`; continued after its three, so that no two draws are alike.
_TEST, _BUDGET, _VAL = 3, 4, 5
_GROUPS = 10


def assign_target_roles(
    targets: NDArray[np.float32],
    *,
    task: str,
    splits: NDArray[np.str_] | None,
    train_split: str,
    val_split: str | None,
    test_split: str | None,
    test_share: float,
    seed: int,
    names: Sequence[str],
) -> Roles:
    """Give every image with a target its role, from the data's own splits where it has any.

    Without splits, or with `test_split=None`, a stratified test part is drawn from the training images.

    Args:
        targets: float32 [N, K], NaN = missing.
        task: "multi_label" or "regression".
        splits: name of the split of each image, or None.
        train_split: split whose targets may be trained on.
        val_split: split that choices are made on; None leaves val empty.
        test_split: split that is scored once; None draws it from the training images.
        test_share: share drawn for test, in (0, 1).
        seed: root seed of the draw.
        names: of the K targets.

    Raises:
        UserError: a split that is not there; among the training or test images, a number without two values, or no
            label at all that has both a positive and a negative.
    """
    found = [] if splits is None else sorted({str(name) for name in splits} - {""})
    check_split_names(found, train_split=train_split, val_split=val_split, test_split=test_split)
    labelled = is_labelled(targets)
    val = np.empty(0, np.int64)
    if splits is None or not found:
        train, test = _split_off(
            targets, np.flatnonzero(labelled), task=task, share=test_share, purpose=_TEST, seed=seed, draw=0
        )
    else:
        train = np.flatnonzero(labelled & (splits == train_split))
        val = val if val_split is None else np.flatnonzero(labelled & (splits == val_split))
        if test_split is None:
            train, test = _split_off(targets, train, task=task, share=test_share, purpose=_TEST, seed=seed, draw=0)
        else:
            test = np.flatnonzero(labelled & (splits == test_split))
    for part, indices in (("training", train), ("test", test)):
        _check_part(targets[indices], part, task=task, names=names)
    return Roles(train=train, val=val, test=test)


def target_budget(
    targets: NDArray[np.float32], candidates: Indices, *, task: str, size: int | float, draw: int, seed: int
) -> Indices:
    """A budget of labelled images, ascending int64 indices; within a draw, smaller budgets lie inside larger ones.

    Args:
        targets: float32 [N, K], NaN = missing.
        candidates: int64, distinct images with at least one target.
        task: "multi_label" or "regression".
        size: an int buys that many images in all; a float in (0, 1] that share of the candidates, one at least.
        draw: number of the draw.
        seed: root seed.

    Raises:
        UserError: fewer candidates than asked for.
    """
    assert size > 0, "a budget is positive"
    count = max(1, rounded(size * len(candidates))) if isinstance(size, float) else size
    if count > len(candidates):
        raise UserError(
            f"There are {len(candidates)} labelled images to draw from, fewer than the labels={count} asked for: with "
            f"data.task={task} a budget counts images in all, and the largest possible here is {len(candidates)}."
        )
    return np.sort(_order(targets, candidates, task=task, purpose=_BUDGET, seed=seed, draw=draw)[:count])


def carve_target_val(
    targets: NDArray[np.float32], indices: Indices, *, task: str, share: float, seed: int, draw: int
) -> tuple[Indices, Indices]:
    """Split a budget into (train, val), stratified; what is held out stays part of the budget.

    Args:
        targets: float32 [N, K], NaN = missing.
        indices: int64, the budget.
        task: "multi_label" or "regression".
        share: share for val, in (0, 1); one image at least goes to val and one stays in train where there are two.
        seed: root seed.
        draw: number of the draw the budget came from.
    """
    return _split_off(targets, indices, task=task, share=share, purpose=_VAL, seed=seed, draw=draw)


def _split_off(
    targets: NDArray[np.float32], indices: Indices, *, task: str, share: float, purpose: int, seed: int, draw: int
) -> tuple[Indices, Indices]:
    assert 0.0 < share < 1.0, "a share lies between 0 and 1"
    if len(indices) < 2:
        return np.sort(indices), np.empty(0, np.int64)
    order = _order(targets, indices, task=task, purpose=purpose, seed=seed, draw=draw)
    count = min(max(1, rounded(share * len(indices))), len(indices) - 1)
    taken = order[:count]
    if task == "multi_label":
        taken = _shuffled(indices, purpose=purpose, seed=seed, draw=draw)
        taken = taken[_iteratively_stratified(targets[taken] == 1, share=share)]
        if not 0 < len(taken) < len(indices):
            taken = order[:count]
    return np.setdiff1d(indices, taken), np.sort(taken)


def _order(
    targets: NDArray[np.float32], candidates: Indices, *, task: str, purpose: int, seed: int, draw: int
) -> Indices:
    """All candidates in the order in which a draw takes them."""
    shuffled = _shuffled(candidates, purpose=purpose, seed=seed, draw=draw)
    if task == "multi_label":
        return _covering_first(targets[shuffled] == 1, shuffled)
    groups = value_groups(targets[shuffled], num_groups=_GROUPS)
    # The turn of an image: how many of its group came before it; within a turn the shuffled order stays.
    turn = np.empty(len(shuffled), np.int64)
    for group in range(_GROUPS):
        members = np.flatnonzero(groups == group)
        turn[members] = np.arange(len(members))
    ordered: Indices = shuffled[np.argsort(turn, kind="stable")]
    return ordered


def value_groups(targets: NDArray[np.float32], *, num_groups: int) -> Indices:
    """The quantile group int64 [N] in 0..num_groups-1 of each image.

    By the target's rank; of several, by the mean of their ranks (as shares of those known), missing ones left out.

    Args:
        targets: float32 [N, K], at least one value a row.
        num_groups: how many.
    """
    if not len(targets):
        return np.empty(0, np.int64)
    ranks = np.full(targets.shape, np.nan)
    for column in range(targets.shape[1]):
        known = np.flatnonzero(~np.isnan(targets[:, column]))
        ranks[known, column] = (rankdata(targets[known, column]) - 0.5) / max(1, len(known))
    places = rankdata(np.nanmean(ranks, axis=1), method="ordinal") - 1
    return np.asarray(places * num_groups // len(targets), dtype=np.int64)


def _covering_first(positives: NDArray[np.bool_], order: Indices) -> Indices:
    """The order, with those brought to its front that give each label a positive, the rarest label first."""
    counts = positives.sum(axis=0)
    is_covered = counts == 0  # nothing to be had
    front: list[int] = []
    for label in np.argsort(counts, kind="stable").tolist():
        if not is_covered[label]:
            first = int(np.argmax(positives[:, label]))
            front.append(first)
            is_covered |= positives[first]
    rest = np.setdiff1d(np.arange(len(order)), front)
    ordered: Indices = order[np.concatenate([np.array(front, np.int64), rest])]
    return ordered


def _iteratively_stratified(positives: NDArray[np.bool_], *, share: float) -> Indices:
    """Rows to split off so that about `share` of every label's positives goes with them, one at least of two or more.

    Sechidis et al. 2011, algorithm 1, with two parts: the label with the fewest rows left is dealt out first, each of
    its rows to the part that wants more of it, ties to the part that wants more rows, then to the one that stays. The
    rows come shuffled, and are dealt out in their order.
    """
    counts = positives.sum(axis=0)
    wanted = np.floor(share * counts + 0.5)
    wanted = np.where(counts >= 2, np.clip(wanted, 1, counts - 1), 0).astype(np.float64)
    kept = counts - wanted
    rows_wanted = float(rounded(share * len(positives)))
    rows_kept = len(positives) - rows_wanted
    is_left, taken = np.ones(len(positives), bool), list[int]()
    left = counts.copy()

    def deal(row: int, is_taken: bool) -> None:
        nonlocal rows_wanted, rows_kept, left
        is_left[row] = False
        left = left - positives[row]
        if is_taken:
            taken.append(row)
            rows_wanted -= 1
            wanted[positives[row]] -= 1
        else:
            rows_kept -= 1
            kept[positives[row]] -= 1

    while left.any():
        label = int(np.argmin(np.where(left > 0, left, len(positives) + 1)))
        for row in np.flatnonzero(is_left & positives[:, label]).tolist():
            deal(row, (wanted[label], rows_wanted) > (kept[label], rows_kept))
    for row in np.flatnonzero(is_left).tolist():
        deal(row, rows_wanted > 0)
    return np.array(taken, np.int64)


def _shuffled(members: Indices, *, purpose: int, seed: int, draw: int) -> Indices:
    key = np.random.SeedSequence([seed, purpose, draw])
    # Sorted first, so that the order of the members does not matter.
    shuffled: Indices = np.random.Generator(np.random.Philox(key)).permutation(np.sort(np.asarray(members, np.int64)))
    return shuffled


def _check_part(targets: NDArray[np.float32], part: str, *, task: str, names: Sequence[str]) -> None:
    """Refuse a part from which nothing can be learnt, or on which nothing can be scored."""
    if not len(targets):
        raise UserError(
            f"None of the {part} images has a target: check the columns in data.targets, or name other splits with "
            "`train_split=` and `test_split=`."
        )
    gaps = target_gaps(targets, task=task, names=names)
    if gaps and (task == "regression" or len(gaps) == len(names)):
        verb = "learnt" if part == "training" else "scored"
        raise UserError(
            f"{gaps[0]} among the {len(targets)} {part} images, so it cannot be {verb}: label more images, or leave it "
            "out of data.targets."
        )


def target_gaps(targets: NDArray[np.float32], *, task: str, names: Sequence[str]) -> list[str]:
    """The start of a sentence for each target that says nothing here: no value, one alone, no positive, no negative."""
    gaps = []
    for name, column in zip(names, targets.T, strict=True):
        known = np.unique(column[~np.isnan(column)])
        if not len(known):
            gaps.append(f"The target {name!r} has no value")
        elif len(known) == 1 and task == "regression":
            gaps.append(f"The target {name!r} has one value only, {known[0]:g},")
        elif len(known) == 1:
            gaps.append(f"The target {name!r} has no {'negative (0)' if known[0] else 'positive (1)'}")
    return gaps
