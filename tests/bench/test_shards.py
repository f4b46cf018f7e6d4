"""The row shards: what counts as missed, and a small epoch in both layouts, with a kill that is really one."""

import numpy as np
import pytest

from ssl_ft.bench import shards


@pytest.mark.parametrize(
    ("order", "num_images", "count"),
    [
        ([[0, 1], [2, 3]], 4, 0),
        ([[0, 1], [3, 2]], 5, 0),  # the partial batch of the fifth is left out
        ([[0, 1], [1, 3]], 4, 2),  # 1 came twice, 2 never
        ([[0, 0], [0, 0]], 4, 4),
    ],
)
def test_images_missed(order, num_images, count):
    assert shards.missed(np.array(order), num_images) == count


def test_orders_are_joined_rank_by_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_BATCH_SIZE", 4)
    for rank, images in enumerate(([0, 1, 4, 5, 8], [2, 3, 6, 7])):  # rank 0 had begun one more step
        np.array(images[: 4 + rank * 4], np.int64).tofile(tmp_path / f"order-{rank}.bin")
    (tmp_path / "memory-0.txt").write_text("100.5\n200.5\n")
    order, memory = shards.orders_of(tmp_path, num_ranks=2)
    assert order.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert memory.tolist() == [100.5, 200.5]


@pytest.mark.slow
@pytest.mark.dist
def test_an_epoch_of_each_layout():
    rows = list(shards.measure(None, num_images=6000))
    assert len(rows) == 8
    exact = [row for row in rows if row.unit in ("images", "steps")]
    assert [row.ours for row in exact] == [0, 0, 0, 0]
    assert all("killed by SIGKILL after step 5" in row.note for row in exact if row.unit == "steps")
