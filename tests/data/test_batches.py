"""Batches: ranks' shares join to the global batch, decoding ahead changes nothing, views ignore mixed precision."""

import pytest
import torch

from ssl_ft.data.batches import Batch, batches
from ssl_ft.data.permutation import batch_indices
from ssl_ft.data.source import Source
from ssl_ft.data.store import DecodeOptions, ImageStore
from ssl_ft.data.views import normalise
from ssl_ft.errors import UserError
from tests.pools import batch_of, noise_images, source_of, store_of, view_maker

POOL = noise_images(40, side=6)


def take(start: int, stop: int, *, is_decoded: bool = True, workers: int = 2, batch_size: int = 12) -> list[Batch]:
    store = store_of(POOL, is_decoded=is_decoded)
    stream = batches(store, batch_size=batch_size, seed=3, start_step=start, num_steps=stop, workers=workers)
    return list(stream)


def assert_same(first: Batch, second: Batch) -> None:
    assert first.epoch == second.epoch
    for name in ("images_BCSS", "aspects_B", "indices_B"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_batch_holds_the_images_that_its_step_names() -> None:
    for step, batch in enumerate(take(0, 7)):
        epoch, indices = batch_indices(step, num_images=40, batch_size=12, seed=3)
        assert batch.epoch == epoch == step // 3
        assert torch.equal(batch.indices_B, indices)
        assert torch.equal(batch.images_BCSS, torch.from_numpy(POOL[indices.numpy()]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_shares_of_ranks_join_to_the_global_batch(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = take(0, 5)
    monkeypatch.setattr("ssl_ft.dist.world_size", lambda: num_ranks)
    shares = []
    for rank in range(num_ranks):
        monkeypatch.setattr("ssl_ft.dist.rank", lambda rank=rank: rank)
        shares.append(take(0, 5))
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        joined = (torch.cat([getattr(p, n) for p in parts]) for n in ("images_BCSS", "aspects_B", "indices_B"))
        assert_same(Batch(*joined, epoch=parts[0].epoch), batch)


def test_a_batch_that_ranks_cannot_share_is_our_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_ft.dist.world_size", lambda: 5)
    with pytest.raises(AssertionError, match="must divide"):
        take(0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_ahead_and_in_step_equal_the_decoded_pool(workers: int) -> None:
    for ahead, direct in zip(take(2, 9, is_decoded=False, workers=workers), take(2, 9), strict=True):
        assert_same(ahead, direct)


@pytest.mark.parametrize("is_decoded", [True, False])
def test_starting_midway_gives_the_rest(is_decoded: bool) -> None:
    for late, early in zip(take(4, 8, is_decoded=is_decoded), take(0, 8, is_decoded=is_decoded)[4:], strict=True):
        assert_same(late, early)


def test_a_mistake_found_while_decoding_ahead_reaches_the_caller() -> None:
    broken: Source = source_of([b"nothing"] * 40)
    store = ImageStore(broken, DecodeOptions(channels=3, side=6), seed=0, is_decoded=False)
    with pytest.raises(UserError, match="could not be read"):
        next(batches(store, batch_size=4, seed=0, start_step=0, num_steps=9, workers=2))


def test_split_gives_equal_parts_in_order() -> None:
    batch = batch_of(12, epoch=2)
    parts = batch.split(3)
    assert [len(p.indices_B) for p in parts] == [4, 4, 4]
    joined = (torch.cat([getattr(p, n) for p in parts]) for n in ("images_BCSS", "aspects_B", "indices_B"))
    assert_same(Batch(*joined, epoch=parts[1].epoch), batch)


def test_views_under_autocast_are_the_same_float32() -> None:
    batch, maker = batch_of(6, side=20), view_maker(10, dtype=torch.float32)
    exact = maker(batch, view=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = maker(batch, view=1)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)


def test_views_are_normalised_and_laid_out_as_asked() -> None:
    from dataclasses import replace

    batch, maker = batch_of(4), view_maker(8)
    views = maker(batch, view=0)
    assert views.dtype == torch.float64
    assert torch.equal(views, normalise(maker.pixels(batch, view=0), mean=maker.mean, std=maker.std))
    last = replace(maker, is_channels_last=True)(batch, view=0)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, views)
