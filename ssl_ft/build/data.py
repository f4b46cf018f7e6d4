"""From data settings to sources, roles, stores and input contracts. Models are built in `build/parts.py`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.config import DataSettings
from ssl_ft.data.images import DamagedImage, probe_header
from ssl_ft.data.permutation import Order, permute
from ssl_ft.data.shards import HELD_GROUP_BYTES
from ssl_ft.data.source import Source, open_source
from ssl_ft.data.splits import Roles, assign_roles
from ssl_ft.data.store import DecodeOptions, ImageStore, channel_statistics
from ssl_ft.data.target_splits import assign_target_roles
from ssl_ft.data.targets import TargetColumns
from ssl_ft.data.windows import WindowedOrder
from ssl_ft.errors import UserError
from ssl_ft.seeding import derive_seed

# Headers read to learn the size and channels of a source; evenly spread, so that class folders all have their say.
_HEADERS = 64
_LARGEST_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class ImageKind:
    """What the images of a source are like, from the headers of a few.

    Attributes:
        channels: the most of any.
        short_side: median of the shorter side in pixels.
        is_uniform: all looked at are squares of one size.
    """

    channels: int
    short_side: int
    is_uniform: bool


def open_data(settings: DataSettings) -> Source:
    """The source with all its splits, and the labels or targets of its task."""
    wanted = None
    if settings.task != "classes":
        wanted = TargetColumns(settings.task, settings.targets, settings.separator)
    return open_source(
        settings.path,
        kind=settings.kind,
        test_location=settings.test_path,
        download=settings.download,
        wanted=wanted,
    )


def pool_of(source: Source, settings: DataSettings) -> tuple[Source, NDArray[np.int64]]:
    """The images to pretrain on, and the held-out test images (int64 indices), which are never among them.

    Raises:
        UserError: the source has splits but none of the name asked for.
    """
    test = np.empty(0, np.int64)
    is_pool = np.broadcast_to(np.True_, len(source))  # one value in memory
    if source.splits is not None:
        is_pool = source.splits == settings.train_split
        if not np.any(is_pool):
            names = ", ".join(sorted(set(source.splits.tolist()) - {""}))
            raise UserError(
                f"data.train_split={settings.train_split!r}: {source.location} has the splits {names}; name the one "
                "to pretrain on"
            )
        test = np.flatnonzero(source.splits == settings.test_split)
        if settings.test_split is None:
            test = roles_of(source, settings).test
    elif source.targets is not None or (source.labels is not None and len(source.class_names) > 1):
        # The stages after this one will hold out the same images.
        test = roles_of(source, settings).test
    if source.splits is None and not len(test) and settings.limit is None:
        return source, test  # the largest pools have neither labels nor splits, and need nothing for each image
    is_pool = np.array(is_pool)
    is_pool[test] = False
    return source.subset(limited(np.flatnonzero(is_pool), settings)), test


def labelled_part(source: Source) -> Source:
    """The images that have a label, to pretrain on labels; a test part that is drawn stays the same.

    Raises:
        UserError: no labels, or of one class alone.
    """
    known = np.empty(0, np.int64) if source.labels is None else np.flatnonzero(source.labels >= 0)
    if not len(known) or len(source.class_names) < 2:
        held = "labels of one class" if len(known) else "no labels"
        raise UserError(
            f"objective=supervised: {source.location} has {held}, and two classes or more are to be told apart; give "
            "class folders or a manifest with a label column, or choose an objective that needs no labels"
        )
    return source.subset(known)


def check_pool_classes(pool: Source) -> None:
    """Refuse a labelled pool that lacks a class of its source.

    Raises:
        UserError: it does; the classes are named.
    """
    assert pool.labels is not None, "a pool to train on labels of has labels"
    counts = np.bincount(pool.labels, minlength=len(pool.class_names))
    absent = [name for name, count in zip(pool.class_names, counts.tolist(), strict=True) if not count]
    if absent:
        raise UserError(
            f"objective=supervised: the pool of {pool.location} has no image of {', '.join(map(repr, absent[:10]))}; "
            "raise data.limit where it is set, name another data.train_split, or take the class out of the source"
        )


def limited(indices: NDArray[np.int64], settings: DataSettings) -> NDArray[np.int64]:
    """A seeded random subset of `settings.limit` indices, in order; all of them where there is no limit."""
    if settings.limit is None or settings.limit >= len(indices):
        return indices
    places = permute(
        torch.arange(settings.limit), num_items=len(indices), key=derive_seed(settings.split_seed, "limit")
    )
    return np.sort(indices[places.numpy()])


def roles_of(source: Source, settings: DataSettings) -> Roles:
    """Train, val and test of a labelled source.

    Raises:
        UserError: no labels, or splits and classes (or targets) that do not allow a judgement.
    """
    if source.targets is not None:
        return assign_target_roles(
            source.targets,
            task=source.task,
            splits=source.splits,
            train_split=settings.train_split,
            val_split=settings.val_split,
            test_split=settings.test_split,
            test_share=settings.test_share,
            seed=settings.split_seed,
            names=source.target_names,
        )
    if source.labels is None:
        why = "".join(f" ({note.rstrip('.')})" for note in source.notes if "without labels" in note)
        raise UserError(
            f"{source.location} has no labels{why}, and this stage needs some, of two classes or more: give class "
            "folders or a manifest with a label column"
        )
    return assign_roles(
        source.labels,
        splits=source.splits,
        train_split=settings.train_split,
        val_split=settings.val_split,
        test_split=settings.test_split,
        test_share=settings.test_share,
        seed=settings.split_seed,
        class_names=source.class_names,
    )


def look_at(source: Source) -> ImageKind:
    """Size and channels of a source.

    Raises:
        UserError: not one of the headers could be read, or most images are a single pixel wide or high.
    """
    headers = []
    reason = "it is empty"
    looked_at = source.sample(_HEADERS).tolist()
    for index in looked_at:
        try:
            headers.append(probe_header(source.read(index)))
        except (DamagedImage, OSError) as error:
            reason = f"{source.names[index]}: {error}"
    if not headers:
        raise UserError(f"{source.location}: none of {len(looked_at)} images looked at can be read; the last: {reason}")
    sides = Counter((width, height) for width, height, _ in headers)
    channels = max(c for _, _, c in headers)
    short = int(np.median([min(width, height) for width, height, _ in headers]))
    if short < 2:
        raise UserError(
            f"{source.location}: most images are 1 pixel wide or high, so there is nothing to see in them; "
            "name a folder of larger images"
        )
    return ImageKind(channels, short, len(sides) == 1 and headers[0][0] == headers[0][1])


def input_size(kind: ImageKind, size: int | None) -> int:
    """The side asked for, or that of the images up to 224; above 64 a multiple of 32, which encoders divide evenly."""
    if size is not None:
        return size
    side = min(kind.short_side, _LARGEST_DEFAULT_SIZE)
    return side if side <= 64 else side // 32 * 32


def build_store(
    pool: Source,
    settings: DataSettings,
    *,
    kind: ImageKind,
    channels: int,
    size: int,
    seed: int,
    run: Path,
    is_class_kept: bool = False,
) -> ImageStore:
    """The pool as training reads it, decoded once where it is small."""
    # A crop of part of the image is drawn from more pixels than it has, up to a quarter more than the whole needs.
    side = kind.short_side if kind.is_uniform and kind.short_side <= 2 * size else round(1.25 * size)
    options = DecodeOptions(
        channels,
        max(1, min(side, kind.short_side) if kind.short_side >= size else side),
        settings.white_level,
        settings.max_pixels,
        settings.draft,
        settings.max_damaged_share,
        settings.workers,
    )
    size_mb = len(pool) * channels * options.side**2 / 2**20
    is_decoded = settings.cache != "none" and size_mb <= settings.cache_mb
    memory_map = run / "cache" / "pixels.npy" if settings.cache == "disk" else None
    return ImageStore(
        pool, options, seed=seed, is_decoded=is_decoded, memory_map=memory_map, is_class_kept=is_class_kept
    )


def build_order(pool: Source, settings: DataSettings) -> Order:
    """The order the pool is read in: any at all, or where its images lie in shards, one that keeps to them.

    Raises:
        UserError: a window of Parquet shards would not stay in memory and be read again and again.
    """
    if pool.stretches is None:
        return permute
    # A quarter is left for the stretch that crosses the end of a window and for those of the next.
    most = pool.stretches.images_within(HELD_GROUP_BYTES * 3 // 4)
    if most and min(settings.window_images, len(pool)) > most:
        raise UserError(
            f"data.window_images={settings.window_images} is too many for {pool.location}: the row groups of such a "
            f"window would not stay in memory and be read again for each image. Set data.window_images={most}, or pack "
            "the images into tar shards (`ssl-ft index`, pack=), which are read one image at a time"
        )
    return WindowedOrder(pool.stretches, window_images=settings.window_images)


def build_contract(store: ImageStore, *, size: int, seed: int) -> InputContract:
    """What the encoder will take, with the pool's own mean and standard deviation."""
    mean, std = channel_statistics(store, seed=seed)
    return InputContract(size, store.options.channels, mean, std, store.options.white_level)
