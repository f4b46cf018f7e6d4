"""The views row: both sides make two views of each file of the same folder, whatever its layout."""

import itertools

import pytest
import torch
from PIL import Image

from ssl_ft.bench.peers import photo_batches
from ssl_ft.bench.pools import photo_folder
from ssl_ft.bench.views import measure, prepare_ours
from ssl_ft.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Six files, some of them in folders."""
    for number, place in enumerate(("a/x", "a/y", "b/x", "x", "y", "z")):
        path = tmp_path / "photos" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (40 * number, 90, 10)).save(path)
    return tmp_path / "photos"


def test_both_sides_make_two_views_of_every_file(photos):
    with photo_folder(str(photos)) as folder:
        ours = prepare_ours(folder, size=32, batch_size=6)()
        (first, second), labels = next(photo_batches(folder, size=32, batch_size=6))
    assert [view.shape for view in (*ours, first, second)] == [(6, 3, 32, 32)] * 4
    assert labels.tolist() == [0] * 6
    assert not torch.equal(*ours)
    assert photos.is_dir()


def test_the_peer_never_runs_out(photos):
    with photo_folder(str(photos)) as folder:
        assert len(list(itertools.islice(photo_batches(folder, size=32, batch_size=4), 3))) == 3


def test_row_of_noise():
    threads = torch.get_num_threads()
    with photo_folder(None, count=4) as folder:
        assert len(list((folder / "all").glob("*.jpg"))) == 4
        (row,) = measure(folder, rounds=1, size=32, batch_size=2)
    assert row.unit == "views/core-s"
    assert row.low <= row.ratio <= row.high
    assert row.bar.value == 2.0
    assert torch.get_num_threads() == threads
    assert not folder.exists()


def test_too_few_photos(photos):
    with photo_folder(str(photos)) as folder, pytest.raises(UserError, match="holds 6 images, and at least 7"):
        prepare_ours(folder, size=32, batch_size=7)
