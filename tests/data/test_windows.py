"""The order of images in shards: a bijection each epoch, bounded windows, mixing, and nothing but (stretches, key)."""

import itertools

import numpy as np
import pytest
import torch

from ssl_ft.data.permutation import batch_indices, steps_per_epoch
from ssl_ft.data.windows import Stretches, WindowedOrder

COUNTS = {
    "one image": [1],
    "one shard": [37],
    "single images": [1] * 23,
    "equal": [10] * 12,
    "ragged": [3, 1, 40, 7, 7, 2, 19, 1, 1, 30],
    "a giant among dwarfs": [2, 500, 3, 1],
}


def stretches(counts: list[int]) -> Stretches:
    return Stretches(np.concatenate([[0], np.cumsum(counts)]), np.zeros(len(counts), np.int64))


def epoch(order: WindowedOrder, *, key: int) -> torch.Tensor:
    count = int(order.starts[-1])
    return order(torch.arange(count), num_items=count, key=key)


@pytest.mark.parametrize("window", [1, 2, 7, 16, 10_000])
@pytest.mark.parametrize("case", COUNTS)
def test_each_image_once_and_no_further_from_its_shard_than_a_window(case: str, window: int) -> None:
    counts = COUNTS[case]
    order = WindowedOrder(stretches(counts), window_images=window)
    for key in range(5):
        images = epoch(order, key=key)
        assert sorted(images.tolist()) == list(range(sum(counts)))
        place = torch.empty_like(images)
        place[images] = torch.arange(len(images))
        for start, end in itertools.pairwise(order.starts.tolist()):
            assert int(place[start:end].max() - place[start:end].min()) < window + max(counts)


def test_any_positions_in_any_sequence_and_by_any_object_give_the_same() -> None:
    order = WindowedOrder(stretches(COUNTS["ragged"]), window_images=20)
    count = sum(COUNTS["ragged"])
    whole = {key: epoch(WindowedOrder(stretches(COUNTS["ragged"]), window_images=20), key=key) for key in (5, 6)}
    generator = torch.Generator().manual_seed(0)
    for key in (5, 6, 5, 5, 6):  # another epoch in between must not stay in the memo
        positions = torch.randperm(count, generator=generator)[:9]
        assert torch.equal(order(positions, num_items=count, key=key), whole[key][positions])


def test_shards_come_in_random_order_and_images_of_a_window_are_mixed() -> None:
    order = WindowedOrder(stretches([50] * 20), window_images=200)
    images = torch.stack([order(torch.arange(32), num_items=1000, key=key) for key in range(300)])
    shards = images // 50
    firsts = torch.bincount(shards[:, 0], minlength=20)
    assert firsts.min() > 2  # 15 expected
    # 32 images of a window of four shards come from all four, but for one draw in thousands.
    distinct = [len(row.unique()) for row in shards]
    assert min(distinct) >= 3
    assert max(distinct) == 4
    # Places within a shard are mixed as well.
    assert len({tuple(row.tolist()) for row in images[:, :4] % 50}) == 300


def test_epochs_of_batches_hold_each_image_at_most_once_and_leave_out_others_each_time() -> None:
    order = WindowedOrder(stretches(COUNTS["ragged"]), window_images=16)
    steps = steps_per_epoch(num_images=111, batch_size=10)

    def batch(step: int) -> tuple[int, torch.Tensor]:
        return batch_indices(step, num_images=111, batch_size=10, seed=3, order=order)

    seen = [torch.cat([batch(number * steps + step)[1] for step in range(steps)]) for number in range(4)]
    assert [len(set(images.tolist())) for images in seen] == [110] * 4
    assert len({(set(range(111)) - set(images.tolist())).pop() for images in seen}) > 1
    assert batch(steps)[0] == 1


def test_a_billion_images() -> None:
    order = WindowedOrder(stretches([10_000] * 100_000), window_images=50_000)
    places = torch.tensor([0, 1, 500_000_000, 999_999_999])
    images = order(places, num_items=10**9, key=3)
    assert len(set(images.tolist())) == 4
    assert 0 <= int(images.min()) <= int(images.max()) < 10**9


def test_a_sample_is_spread_but_touches_few_stretches() -> None:
    large = stretches([1000] * 500).sample(2000)
    assert len(large) == len(set(large.tolist())) == 2000
    assert np.all(np.diff(large) > 0)
    assert len(set((large // 1000).tolist())) == 64
    assert large[-1] > 490_000
    assert set((large % 1000 // 100).tolist()) == set(range(10))
    assert len(stretches([2] * 50).sample(90)) > 40
    assert stretches([5, 1, 9]).sample(15).tolist() != []
    assert stretches([4]).sample(4).tolist() == [0, 1, 2, 3]


def test_stretches_of_a_part() -> None:
    whole = Stretches(np.array([0, 3, 5, 9]), np.array([7, 8, 9]))
    part = whole.of(np.array([1, 2, 6, 8]))
    assert part is not None
    assert part.starts.tolist() == [0, 2, 4]
    assert part.loaded_bytes.tolist() == [7, 9]
    assert whole.of(np.array([2, 1])) is None
    # 24 bytes for 9 images; all of 16 bytes for these 4.
    assert whole.images_within(240) == 90
    assert part.images_within(240) == 60
    assert Stretches(np.array([0, 3]), np.array([0])).images_within(1) == 0
