"""Label roles (train, val, test), label budgets and the val part carved out of a budget: indices in, indices out.

Every draw is a permutation keyed by (seed, purpose, draw, class), so an image's role depends only on its class and on
its rank among the images of that class: images of other classes, or without a label, can come and go. Not here: reading
labels or splits from files, features, and any decision on how often the test part may be scored.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.errors import UserError

Indices = NDArray[np.int64]

UNLABELLED = -1

# First word of a permutation's key: the three draws below must not be correlated with one another.
_TEST, _BUDGET, _VAL = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Roles:
    """Three disjoint sets of labelled images, as ascending int64 indices into the data source."""

    train: Indices
    val: Indices
    test: Indices

    def __post_init__(self) -> None:
        """Refuse an image that holds two roles."""
        joined = np.concatenate([self.train, self.val, self.test])
        assert len(np.unique(joined)) == len(joined), "an image holds two roles"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the three index sets; equal on every machine for equal roles."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            # The length first: moving the border between two roles must change the hash.
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()


def assign_roles(
    labels: Indices,
    *,
    splits: NDArray[Any] | None,
    train_split: str = "train",
    val_split: str | None = None,
    test_split: str | None = "test",
    test_share: float = 0.2,
    seed: int,
    class_names: Sequence[str] = (),
) -> Roles:
    """Give every labelled image its role, from the data's own splits where it has any.

    Without splits (None, or all names empty), or with `test_split=None`, a stratified test part is drawn from the
    training images: of each class with two images or more at least one goes to test and at least one stays in train.
    Images without a label, and images of splits that are not named here, hold no role.

    Args:
        labels: int64 [N], class of each image, −1 where there is none.
        splits: str [N], name of the split of each image, or None.
        train_split: Split whose labels may be trained on.
        val_split: Split that choices are made on; None leaves val empty.
        test_split: Split that is scored once; None draws it from the training images.
        test_share: Share of each class drawn for test, in (0, 1).
        seed: Root seed of the draw, >= 0.
        class_names: Names by class number, used in messages only.

    Raises:
        UserError: No labels, one class, a split that is not there, a test class that train lacks, or a train class
            that val lacks.
    """
    found = [] if splits is None else sorted({str(name) for name in splits} - {""})
    check_split_names(found, train_split=train_split, val_split=val_split, test_split=test_split)
    if not np.any(labels >= 0):
        raise UserError(
            "None of the images has a label, so nothing can be trained or scored on labels: "
            "give class folders or a manifest with a label column, or stay with the pretrain stage."
        )
    if splits is None or not found:
        train, test = _draw_test(labels, np.flatnonzero(labels >= 0), share=test_share, seed=seed)
        val = np.empty(0, np.int64)
    else:
        train = _members(labels, splits, train_split)
        val = np.empty(0, np.int64) if val_split is None else _members(labels, splits, val_split)
        if test_split is None:
            train, test = _draw_test(labels, train, share=test_share, seed=seed)
        else:
            test = _members(labels, splits, test_split)
    roles = Roles(train=train, val=val, test=test)
    _check_classes(labels, roles, train_split=train_split, val_split=val_split, class_names=class_names)
    return roles


def label_budget(
    labels: Indices,
    candidates: Indices,
    *,
    per_class: int | float,
    draw: int,
    seed: int,
    class_names: Sequence[str] = (),
    damaged: Indices | None = None,
) -> Indices:
    """Return a stratified label budget, ascending int64 indices; within a draw, smaller budgets lie inside larger ones.

    Args:
        labels: int64 [N], class of each image.
        candidates: int64, distinct images whose labels may be bought; all labelled.
        per_class: An int buys that many labels of each class; a float in (0, 1] that share of each class, rounded,
            one at least.
        draw: Number of the draw, >= 0; draws are independent of one another.
        seed: Root seed, >= 0.
        class_names: Names by class number, used in messages only.
        damaged: int64, candidates that cannot be read: the next of their class in the draw's order stand in for them,
            and nothing else of the draw changes.

    Raises:
        UserError: A class has too few labels, or `per_class` is out of range.
    """
    is_share = isinstance(per_class, float)
    if not (0.0 < per_class <= 1.0 if is_share else per_class >= 1):
        raise UserError(
            f"A label budget of {per_class!r} is not possible: give a whole number of labels per class (1 or more) "
            "or a share of each class as a decimal fraction (above 0.0, up to 1.0)."
        )
    bought = []
    for cls, members in _by_class(labels, candidates):
        count = max(1, rounded(per_class * len(members))) if is_share else int(per_class)
        if count > len(members):
            smallest = min(len(others) for _, others in _by_class(labels, candidates))
            raise UserError(
                f"There are {len(members)} labels of {_named([cls], class_names)} to draw from, fewer than the {count} "
                f"per class asked for: the largest budget possible here is {smallest} per class."
            )
        order = _shuffled(members, purpose=_BUDGET, seed=seed, draw=draw, cls=cls)
        if damaged is not None:
            order = order[~np.isin(order, damaged)]
        if len(order) < count:
            raise UserError(
                f"Of {len(members)} images of {_named([cls], class_names)}, {len(order)} can be read, fewer than the "
                f"{count} asked for: mend them, or ask for a smaller budget."
            )
        bought.append(order[:count])
    assert bought, "a label budget needs candidates"
    return np.sort(np.concatenate(bought))


def carve_val(
    labels: Indices, indices: Indices, *, share: float = 0.2, seed: int, draw: int
) -> tuple[Indices, Indices]:
    """Split a label budget into (train, val), stratified; what is held out stays part of the budget.

    Of each class with two labels or more at least one goes to val and at least one stays in train; a class with a
    single label stays in train.

    Args:
        labels: int64 [N], class of each image.
        indices: int64, the budget.
        share: Share of each class for val, in (0, 1).
        seed: Root seed, >= 0.
        draw: Number of the draw the budget came from, >= 0.
    """
    return _split_off(labels, indices, share=share, purpose=_VAL, seed=seed, draw=draw)


def _draw_test(labels: Indices, indices: Indices, *, share: float, seed: int) -> tuple[Indices, Indices]:
    if not 0.0 < share < 1.0:
        raise UserError(f"test_share={share} is not possible: it is a share of each class, above 0 and below 1.")
    train, test = _split_off(labels, indices, share=share, purpose=_TEST, seed=seed, draw=0)
    if len(indices) and not len(test):
        raise UserError(
            "No test part can be drawn because no class has two labelled images: "
            "label more images, or name a split to test on with `test_split=`."
        )
    return train, test


def _split_off(
    labels: Indices, indices: Indices, *, share: float, purpose: int, seed: int, draw: int
) -> tuple[Indices, Indices]:
    assert 0.0 < share < 1.0, "a share lies between 0 and 1"
    kept, taken = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for cls, members in _by_class(labels, indices):
        count = 0 if len(members) < 2 else min(max(1, rounded(share * len(members))), len(members) - 1)
        order = _shuffled(members, purpose=purpose, seed=seed, draw=draw, cls=cls)
        taken.append(order[:count])
        kept.append(order[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(taken))


def _by_class(labels: Indices, indices: Indices) -> list[tuple[int, Indices]]:
    """Members of each class in ascending order, so that the order of `indices` does not matter."""
    ordered = np.sort(np.asarray(indices, np.int64))
    classes = labels[ordered]
    assert not len(ordered) or classes.min() >= 0, "an image without a label cannot hold a role"
    # A stable sort by class keeps the ascending order within each class; one pass even for thousands of classes.
    present, starts = np.unique(np.sort(classes), return_index=True)
    groups = np.split(ordered[np.argsort(classes, kind="stable")], starts[1:])
    return [(int(cls), members) for cls, members in zip(present, groups, strict=True)]


def _shuffled(members: Indices, *, purpose: int, seed: int, draw: int, cls: int) -> Indices:
    key = np.random.SeedSequence([seed, purpose, draw, cls])
    return np.random.Generator(np.random.Philox(key)).permutation(members)


def _members(labels: Indices, splits: NDArray[Any], name: str) -> Indices:
    return np.flatnonzero((splits == name) & (labels >= 0)).astype(np.int64)


def rounded(value: float) -> int:
    """The nearest whole number."""
    # Halves go up: Python's round() would take 2 of 5 but 4 of 7 at one half.
    return int(np.floor(value + 0.5))


def check_split_names(found: list[str], *, train_split: str, val_split: str | None, test_split: str | None) -> None:
    """Refuse names of splits that are not there, or hold two roles.

    Raises:
        UserError: as said.
    """
    wanted = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
    if not found:
        if val_split is not None:
            raise UserError(f"val_split={val_split!r} names a split, but the data has none: leave `val_split=` out.")
        return
    named = [name for name in wanted.values() if name is not None]
    if len(set(named)) < len(named):
        roles = ", ".join(f"{setting}={name}" for setting, name in wanted.items() if name is not None)
        raise UserError(f"One split cannot hold two roles ({roles}): name a different split for each.")
    for setting, name in wanted.items():
        if name is not None and name not in found:
            remedy = " or `test_split=null` to draw a test part from the training images" * (setting == "test_split")
            raise UserError(
                f"The data has no split called {name!r}; its splits are {', '.join(found)}: "
                f"set `{setting}=` to one of them{remedy}."
            )


def _check_classes(
    labels: Indices, roles: Roles, *, train_split: str, val_split: str | None, class_names: Sequence[str]
) -> None:
    train, val, test = (set(labels[part].tolist()) for part in (roles.train, roles.val, roles.test))
    if not train or not test:
        raise UserError(
            f"None of the {'test' if train else 'training'} images has a label: "
            "check the label column, or name other splits with `train_split=` and `test_split=`."
        )
    if len(train | test) == 1:
        raise UserError(
            f"All labels are of one class ({_named(train, class_names)}): at least two classes are needed to train "
            "or score a classifier."
        )
    for part, classes in (("test", test), ("val", val)):
        if classes - train:
            raise UserError(
                f"The {part} part holds {_named(classes - train, class_names)}, of which the training split "
                f"{train_split!r} has no label: add training labels, or take these images out of the {part} part."
            )
    if val_split is not None and train - val:
        raise UserError(
            f"The val split {val_split!r} has no label of {_named(train - val, class_names)}: add some, or leave "
            "`val_split=` out to have val drawn from the training labels."
        )


def _named(classes: Iterable[int], class_names: Sequence[str]) -> str:
    ordered = sorted(classes)
    shown = [repr(class_names[cls]) if cls < len(class_names) else str(cls) for cls in ordered[:10]]
    rest = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return f"{'class' if len(ordered) == 1 else 'classes'} {', '.join(shown)}{rest}"
