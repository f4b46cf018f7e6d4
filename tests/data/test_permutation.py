"""The keyed permutation is a bijection, looks random, costs no memory, and batches are pure functions of the step."""

import pytest
import torch

from ssl_ft.data.permutation import batch_indices, permute, steps_per_epoch


@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 5, 16, 17, 100, 257, 1000])
@pytest.mark.parametrize("key", [0, 1, 2**63 + 5])
def test_bijection(num_items, key):
    image = permute(torch.arange(num_items), num_items=num_items, key=key)
    assert sorted(image.tolist()) == list(range(num_items))


@pytest.mark.slow
def test_every_place_is_reached_equally_often():
    counts = torch.zeros(5, 5)
    for key in range(4000):
        counts[torch.arange(5), permute(torch.arange(5), num_items=5, key=key)] += 1
    # 800 expected, standard deviation 25; five of them.
    assert (counts - 800).abs().max() < 127


def test_a_billion_images_need_no_memory():
    places = torch.tensor([0, 1, 999_999_999])
    image = permute(places, num_items=10**9, key=3)
    assert len(set(image.tolist())) == 3
    assert image.max() < 10**9


def test_an_epoch_holds_each_image_at_most_once_and_epochs_differ():
    steps = steps_per_epoch(num_images=103, batch_size=10)
    assert steps == 10
    first = torch.cat([batch_indices(s, num_images=103, batch_size=10, seed=0)[1] for s in range(steps)])
    second = torch.cat([batch_indices(s + steps, num_images=103, batch_size=10, seed=0)[1] for s in range(steps)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 100
    assert not torch.equal(first, second)
    assert batch_indices(steps, num_images=103, batch_size=10, seed=0)[0] == 1
