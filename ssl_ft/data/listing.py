"""`Source`, the list of images every kind of input is turned into, and the rules for labels and splits they share.

How each kind is found and read stands in `folders`, `tables`, `arrays`, `shards` and `named`; decoding stands in
`images`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ssl_ft.data.windows import Stretches
from ssl_ft.errors import UserError

SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELLED = -1
# Packed images beyond this many bytes are fingerprinted in part, so that it stays a matter of seconds.
FINGERPRINT_BYTES = 256 * 2**20

_WHOLE_NUMBER = re.compile(r"-?\d+")


def evenly_spread(total: int, *, most: int) -> NDArray[np.int64]:
    """At most so many of the numbers 0..total-1, ascending and evenly spread, int64; all where there are no more."""
    count = min(most, total)
    return np.arange(count) * total // max(1, count)


class LazyNames(Sequence[str]):
    """Names worked out when they are asked for, where a list of them would not fit; whoever makes it keeps them unique.

    Args:
        count: how many there are.
        name_of: index in 0..count-1 -> name.
    """

    def __init__(self, count: int, name_of: Callable[[int], str]) -> None:
        self._length, self._name_of = count, name_of

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(self._length)[index]  # knows negative indices, and raises IndexError past the end
        return self._name_of(places) if isinstance(places, int) else [self._name_of(place) for place in places]


@dataclass(frozen=True, eq=False)
class Source:
    """Images by index, not yet decoded; rows are in an order that is the same on every machine.

    `read` may be called from several threads at once. It raises `images.DamagedImage` where a file cannot be
    read.

    Attributes:
        kind: the name in `source.KINDS` under which it was opened.
        location: what the user named.
        names: one unique text per image: path relative to the location, or row name.
        read: index -> encoded file bytes, or an array [H,W] or [H,W,C] of uint8, uint16 or float32 in 0..1.
        evidence: index -> bytes that change when the image does, cheap to get: see `fingerprint`.
        labels: int64 [N] into `class_names`, -1 = unlabelled; None where the source has no labels at all.
        class_names: the user's own label values as text.
        splits: text [N]: "train", "val", "test" or whatever else was found; None where no splits were found.
        notes: sentences worth showing to the user.
        stretches: which images lie together, so that reading in their order is cheap; None where that is no matter.
        identity: hex digest that stands for all of names, labels, splits and evidence where walking through them
            would take too long; None where `fingerprint` does walk.
        targets: float32 [N, K] of multi-label or regression targets, NaN = missing; None where the source was opened
            for classes.
        target_names: of the K targets.
        task: "classes", or what the targets are: "multi_label" or "regression".
    """

    kind: str
    location: str
    names: Sequence[str]
    read: Callable[[int], "bytes | NDArray[np.generic]"]
    evidence: Callable[[int], bytes]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    splits: NDArray[np.str_] | None = None
    notes: tuple[str, ...] = ()
    stretches: Stretches | None = None
    identity: str | None = None
    targets: NDArray[np.float32] | None = None
    target_names: tuple[str, ...] = ()
    task: str = "classes"

    def __post_init__(self) -> None:
        count = len(self.names)
        assert isinstance(self.names, LazyNames) or len(set(self.names)) == count, "names of a source are unique"
        assert self.splits is None or len(self.splits) == count, "one split per image"
        if self.targets is not None:
            assert self.targets.shape == (count, len(self.target_names)), "one target of each name per image"
            assert self.targets.dtype == np.float32, "targets are float32"
        if self.labels is not None:
            assert self.labels.shape == (count,), "one label per image"
            assert self.labels.dtype == np.int64, "labels are int64"
            # Extremes and not comparisons row by row, which would need memory for each row.
            low, high = self.labels.min(initial=0), self.labels.max(initial=UNLABELLED)
            assert UNLABELLED <= low <= high + 1 <= len(self.class_names), "every label names a class or is -1"

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: NDArray[np.integer]) -> "Source":
        """The images at `indices` (int [M], no repeats), in that order; class names stay as they are."""
        kept = np.asarray(indices, dtype=np.int64)
        if len(kept) == len(self) and bool(np.all(kept[1:] > kept[:-1])):
            return self  # all of them, in order
        rows, place = _rows_and_place(kept)
        read, evidence, names = self.read, self.evidence, self.names
        is_lazy = isinstance(names, LazyNames)
        return replace(
            self,
            names=LazyNames(len(kept), lambda i: names[place(i)]) if is_lazy else [names[i] for i in kept],
            read=lambda i: read(place(i)),
            evidence=lambda i: evidence(place(i)),
            labels=None if self.labels is None else self.labels[rows],
            splits=None if self.splits is None else self.splits[rows],
            targets=None if self.targets is None else self.targets[rows],
            stretches=None if self.stretches is None or not len(kept) else self.stretches.of(kept),
            identity=None
            if self.identity is None
            else _digest(self.identity.encode(), np.ascontiguousarray(kept, "<i8").data),
        )

    def sample(self, count: int) -> NDArray[np.int64]:
        """Indices of `count` images (int64, at most all), ascending and evenly spread, to learn what images are like.

        Where reading one means reading those around it too, they come from some stretches only, and may be fewer.
        """
        count = min(count, len(self))
        if self.stretches is not None and bool(self.stretches.loaded_bytes.any()):
            return self.stretches.sample(count)
        return evenly_spread(len(self), most=count)

    def fingerprint(self) -> str:
        """Hex sha256 of names, labels, class names, splits, targets and evidence, row by row.

        Evidence is the file's size where images are files (so an edit that keeps the size goes unseen:
        reading every file would take minutes), and the stored bytes where images are packed (beyond
        256 MiB in all, a stretch from the middle of each; for Parquet too large to hold, its size alone). The
        location is left out: the same folder elsewhere has the same fingerprint. A source with an `identity` gives
        that, which depends on how a subset was arrived at.
        """
        if self.identity is not None:
            return self.identity
        digest = hashlib.sha256()
        for text in (*self.class_names, *self.target_names):
            _feed(digest, text.encode())
        for index, name in enumerate(self.names):
            label = "" if self.labels is None else str(self.labels[index])
            split = "" if self.splits is None else str(self.splits[index])
            _feed(digest, f"{name}\0{label}\0{split}".encode())
            _feed(digest, self.evidence(index))
            if self.targets is not None:
                _feed(digest, self.targets[index].astype("<f4").tobytes())
        return digest.hexdigest()


def _rows_and_place(kept: NDArray[np.int64]) -> "tuple[slice | NDArray[np.int64], Callable[[int], int]]":
    """What to index arrays by to keep these rows, and index -> row; consecutive rows need no memory, here or there."""
    first = int(kept[0]) if len(kept) else 0
    if bool(np.all(kept[1:] == kept[:-1] + 1)):
        return slice(first, first + len(kept)), lambda index: first + index
    return kept, lambda index: int(kept[index])


def _digest(*parts: "bytes | memoryview") -> str:
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", part: "bytes | memoryview") -> None:
    # The length comes first, so that moving a byte from one part to the next changes the hash.
    size = part.nbytes if isinstance(part, memoryview) else len(part)
    digest.update(size.to_bytes(8, "little"))
    digest.update(part)


def sample_divisor(total_bytes: int) -> int:
    """What part (one in how many bytes) of packed content is hashed, so that it is about `FINGERPRINT_BYTES` in all."""
    return max(1, -(-total_bytes // FINGERPRINT_BYTES))


def sample_content(content: "bytes | NDArray[np.generic]", divisor: int) -> bytes:
    """Evidence for packed content: its size and a stretch of 1/divisor of it, at least 64 items, from its middle.

    One stretch and not every n-th byte, so that of a large file mapped from disk only that much is read.
    """
    size = len(content) if isinstance(content, bytes) else content.size
    keep = min(size, max(64, size // divisor))
    start = (size - keep) // 2
    part = content[start : start + keep] if isinstance(content, bytes) else content.reshape(-1)[start : start + keep]
    return size.to_bytes(8, "little") + (part if isinstance(part, bytes) else part.tobytes())


def encode_labels(
    values: Sequence[object], where: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], tuple[str, ...]]:
    """Dense labels int64 [N] (None where all are blank), class names, and notes.

    Blank, missing and NaN values are unlabelled, and so is -1 among whole numbers. Classes are ordered by
    number when all names are whole numbers, else by text; gaps close, and the user's own value stays as the
    class name.

    Raises:
        UserError: fractions as labels, or the pair -1 and 1, which could mean a class or its absence.
    """
    texts = [_label_text(value, where) for value in values]
    found = {text for text in texts if text is not None}
    notes: list[str] = []
    if "-1" in found and all(_WHOLE_NUMBER.fullmatch(text) for text in found):
        if found == {"-1", "1"}:
            raise UserError(
                f"{where}: the labels are -1 and 1, but -1 means unlabelled here. Write 0 and 1, or words, instead."
            )
        found.discard("-1")
        notes.append(f"{where}: {texts.count('-1')} labels are -1 and count as unlabelled.")
    classes = sort_classes(found)
    number = {text: index for index, text in enumerate(classes)}
    labels = np.array([UNLABELLED if text is None else number.get(text, UNLABELLED) for text in texts], dtype=np.int64)
    if not classes:
        return None, (), tuple(notes)
    blank = sum(text is None for text in texts)
    if blank:
        notes.append(f"{where}: {blank} of {len(texts)} images have no label.")
    return labels, classes, tuple(notes)


def encode_named_labels(
    values: Sequence[object], words: Sequence[object], where: str
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], tuple[str, ...]]:
    """As `encode_labels`, for tables with two columns: the label and, beside it, what its class is called.

    Classes keep the order of the labels and carry the words as their names. Either column may be all blank.

    Raises:
        UserError: one label goes with several words, or one word with several labels.
    """
    labels, classes, notes = encode_labels(values, where)
    if labels is None:
        return encode_labels(words, where)
    texts = [_label_text(word, where) for word in words]
    pairs = {
        (classes[label], text) for label, text in zip(labels, texts, strict=True) if label >= 0 and text is not None
    }
    for side, column in enumerate(("label", "label_name")):
        repeated = sorted(text for text, count in Counter(pair[side] for pair in pairs).items() if count > 1)
        if repeated:
            partners = sorted(pair[1 - side] for pair in pairs if pair[side] == repeated[0])
            raise UserError(
                f"{where}: {column} {repeated[0]!r} goes with several values of the other label column "
                f"({', '.join(partners[:5])}). Make label and label_name agree, or leave one out."
            )
    called = dict(pairs)
    return labels, tuple(called.get(name, name) for name in classes), notes


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Class names by number when all are whole numbers, else by text."""
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _label_text(value: object, where: str) -> str | None:
    if value is None or value != value:  # NaN is what pandas writes for a missing number
        return None
    if isinstance(value, float | np.floating):
        if not float(value).is_integer():
            raise UserError(
                f"{where}: label {value} is a fraction. Labels are class names or whole numbers; give each class one."
            )
        return str(int(value))
    return str(value).strip() or None


def canonical_split(text: str) -> str:
    """`train`, `val` or `test` for their usual spellings; anything else stays as it was found."""
    return SPLIT_ALIASES.get(text.strip().lower(), text.strip())


def encode_splits(values: Sequence[object], where: str) -> NDArray[np.str_] | None:
    """Split names [N] in their canonical spelling; None where all are blank.

    Raises:
        UserError: some rows name a split and some do not.
    """
    texts = ["" if value is None else canonical_split(str(value)) for value in values]
    blank = [row for row, text in enumerate(texts) if not text]
    if len(blank) == len(texts):
        return None
    if blank:
        raise UserError(
            f"{where}: {len(blank)} of {len(texts)} rows have no split (first: row {blank[0] + 1}). "
            "Name a split (train, val or test) in every row, or leave the column out."
        )
    return np.array(texts)


def census(source: Source) -> list[str]:
    """Sentences on how many images each class, each target and each split has."""
    sentences = []
    if source.labels is not None:
        counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names)).tolist()
        named = zip(source.class_names, counts, strict=True)
        sentences.append("labels: " + ", ".join(f"{name} {count}" for name, count in named))
    if source.targets is not None:
        known = (~np.isnan(source.targets)).sum(axis=0).tolist()
        named = zip(source.target_names, known, strict=True)
        sentences.append("targets: " + ", ".join(f"{name} {count}" for name, count in named))
    if source.splits is not None:
        found = zip(*np.unique(source.splits, return_counts=True), strict=True)
        sentences.append("splits: " + ", ".join(f"{name} {count}" for name, count in found))
    return sentences


def join_test(first: Source, test: Source) -> Source:
    """`first` as the train part followed by `test` as the test part; classes are matched by name.

    Names of the test part get the prefix `test:`. A val split of `first` is kept.

    Raises:
        UserError: the first source has a test split of its own, or only one of the two has labels.
    """
    if first.splits is not None and bool(np.any(first.splits == "test")):
        raise UserError(
            f"{first.location} has a test split of its own and a second test source, {test.location}, was "
            "named too. Keep one: leave out the second, or point the first at its training part."
        )
    if (first.labels is None) != (test.labels is None):
        bare, full = (first, test) if first.labels is None else (test, first)
        raise UserError(
            f"{full.location} has labels and {bare.location} (read as {bare.kind}) has none, so the two "
            "cannot be matched. Give both labels in the same way, or leave the test source out."
        )
    cut = len(first)
    strangers = tuple(name for name in test.class_names if name not in first.class_names)
    classes = first.class_names + strangers
    if strangers and all(_WHOLE_NUMBER.fullmatch(name) for name in classes):
        classes = sort_classes(set(classes))
    own = np.full(cut, "train") if first.splits is None else np.where(first.splits == "val", "val", "train")
    return Source(
        kind=first.kind,
        location=f"{first.location} + {test.location}",
        names=_joined_names(first.names, test.names),
        read=lambda i: first.read(i) if i < cut else test.read(i - cut),
        evidence=lambda i: first.evidence(i) if i < cut else test.evidence(i - cut),
        labels=_joined_labels(first, test, classes),
        class_names=classes,
        splits=np.concatenate([own, np.full(len(test), "test")]),
        notes=(*first.notes, *test.notes, *_strangers_note(first, test, strangers)),
        stretches=_joined_stretches(first.stretches, test.stretches),
        identity=None
        if first.identity is None and test.identity is None
        else _digest(first.fingerprint().encode(), test.fingerprint().encode()),
    )


def _joined_names(first: Sequence[str], test: Sequence[str]) -> Sequence[str]:
    if not isinstance(first, LazyNames) and not isinstance(test, LazyNames):
        return [*first, *(f"test:{name}" for name in test)]
    cut = len(first)
    return LazyNames(cut + len(test), lambda i: first[i] if i < cut else f"test:{test[i - cut]}")


def _joined_stretches(first: Stretches | None, test: Stretches | None) -> Stretches | None:
    if first is None or test is None:
        return None
    starts = np.concatenate([first.starts, first.starts[-1] + test.starts[1:]])
    return Stretches(starts, np.concatenate([first.loaded_bytes, test.loaded_bytes]))


def _joined_labels(first: Source, test: Source, classes: tuple[str, ...]) -> NDArray[np.int64] | None:
    if first.labels is None or test.labels is None:
        return None
    parts = []
    for labels, names in ((first.labels, first.class_names), (test.labels, test.class_names)):
        renumber = np.array([*(classes.index(name) for name in names), UNLABELLED], dtype=np.int64)
        parts.append(renumber[labels])  # the last entry serves -1
    return np.concatenate(parts)


def _strangers_note(first: Source, test: Source, strangers: tuple[str, ...]) -> tuple[str, ...]:
    if not strangers:
        return ()
    return (f"{test.location} has classes that {first.location} lacks: {', '.join(strangers[:10])}.",)
