"""The balanced order: every group equally often, every image of it once before any comes again, a function of place."""

import numpy as np
import pytest
import torch

from ssl_ft.data.balanced import BalancedOrder, class_groups, label_groups
from ssl_ft.data.batches import batches
from ssl_ft.data.permutation import batch_indices
from tests.pools import noise_images, store_of

LABELS = np.array([0] * 40 + [1] * 8 + [2] * 3 + [4] * 1)
TOTAL = len(LABELS)


def order() -> BalancedOrder:
    return BalancedOrder(class_groups(LABELS))


@pytest.mark.parametrize("key", range(10))
def test_classes_come_equally_often_and_images_in_turn(key: int) -> None:
    images = order()(torch.arange(400), num_items=TOTAL, key=key).numpy()
    counts = np.bincount(LABELS[images % TOTAL], minlength=5)
    assert counts.tolist() == [100, 100, 100, 0, 100]
    # Repeats have numbers of their own: each image appears under i, i + N, i + 2N ...
    assert len(set(images.tolist())) == 400
    for cls in (0, 1, 2, 4):
        laps = images[LABELS[images % TOTAL] == cls] // TOTAL
        assert np.all(np.diff(laps) >= 0)
        size = int((cls == LABELS).sum())
        assert np.all(np.bincount(laps)[:-1] == size)


def test_it_is_a_function_of_place_and_key_alone() -> None:
    whole = order()(torch.arange(100), num_items=TOTAL, key=3)
    parts = [order()(part, num_items=TOTAL, key=3) for part in torch.arange(100).split(7)]
    assert torch.equal(torch.cat(parts), whole)
    places = torch.tensor([50, 3, 99, 3])
    assert torch.equal(order()(places, num_items=TOTAL, key=3), whole[places])
    assert not torch.equal(order()(torch.arange(100), num_items=TOTAL, key=4), whole)


def test_groups_of_labels_overlap_and_the_rest_is_one() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, np.nan, 0], [np.nan, 0, 0]], np.float32)
    assert [group.tolist() for group in label_groups(targets)] == [[0, 1], [0], [2, 3]]
    images = BalancedOrder(label_groups(targets))(torch.arange(300), num_items=4, key=0).numpy() % 4
    assert np.bincount(images).tolist() == [150, 50, 50, 50]


def test_batches_hold_the_images_named_and_each_repeat_is_another_view() -> None:
    pixels = noise_images(TOTAL)
    store = store_of(pixels)
    stream = batches(store, batch_size=16, seed=7, start_step=1, num_steps=3, workers=0, order=order())
    for step, batch in zip((1, 2), stream, strict=True):
        assert batch.images_BCSS is not None
        epoch, indices = batch_indices(step, num_images=TOTAL, batch_size=16, seed=7, order=order())
        assert (batch.epoch, batch.indices_B.tolist()) == (epoch, indices.tolist())
        expected = torch.from_numpy(pixels[indices.numpy() % TOTAL]).permute(0, 3, 1, 2)
        assert torch.equal(batch.images_BCSS, expected)
        assert len(set(batch.indices_B.tolist())) == 16
        assert np.bincount(LABELS[indices.numpy() % TOTAL])[[0, 1, 2, 4]].tolist() == [4] * 4
