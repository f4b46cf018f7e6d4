"""Looking for test images in a pool: what is said of it, of images that cannot be read, lost digests, and two ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_ft import handover
from ssl_ft.build.data import open_data
from ssl_ft.config import DataSettings
from ssl_ft.runlog import RunFolder
from tests.pipelines.conftest import Command, command, write_photos
from tests.ranks import run_on_ranks

__all__ = ["command"]  # a fixture


def looked_for(images: Path, out: Path, **data: Any) -> list[str]:
    """What a run notes whose test images are the last four of a pool of all but the last two."""
    settings = DataSettings(path=str(images), **data)
    source = open_data(settings)
    with RunFolder(out, stage="pretrain", settings={}) as run:
        handover.keep_pool_keys(run, source.subset(np.arange(len(source) - 2)), settings)
        test = np.arange(len(source) - 4, len(source))
        handover.report_duplicates(run, [out], source, test, data=settings)
        return list(run.notes)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "images", count=6)


def test_copies_are_counted(images, tmp_path):
    assert looked_for(images, tmp_path / "o") == [
        "2 test images are also in the pretraining pool, pixel for pixel; see duplicates.csv"
    ]
    assert (tmp_path / "o/duplicates.csv").read_text().splitlines()[1:] == ["b/02.png,b/02.png", "b/03.png,b/03.png"]


def test_the_limit_on_pixels_is_the_datas_and_what_was_not_compared_is_told(images, tmp_path):
    (images / "b" / "05.png").write_bytes(b"")
    assert looked_for(images, tmp_path / "o")[0].endswith(
        "see duplicates.csv; 1 test images and 0 images there cannot be read and were not compared"
    )
    assert looked_for(images, tmp_path / "p", max_pixels=16 * 16 - 1) == [
        "none of the 0 test images is in the pretraining pool, pixel for pixel; 4 test images and 10 images there "
        "cannot be read and were not compared"
    ]


def test_half_copied_digests_are_not_at_hand_and_a_runs_own_are_made_again(images, tmp_path):
    source = open_data(DataSettings(path=str(images)))
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "pool_keys.npz").write_bytes(b"PK\x03\x04 half")
    with RunFolder(tmp_path / "o", stage="finetune", settings={}) as run:
        test, data = np.arange(3), DataSettings(path=str(images))
        handover.report_duplicates(run, [tmp_path / "earlier"], source, test, data=data)
        assert "are not at hand (" in run.notes[0]
        assert "cannot be read: " in run.notes[0]
        assert run.notes[0].endswith("it is not known whether test images are among them")
        (run.path / "pool_keys.npz").write_bytes(b"")
        handover.keep_pool_keys(run, source, data)
        handover.report_duplicates(run, [run.path], source, test, data=data)
        assert run.notes[1].startswith("3 test images are also in")


@pytest.mark.dist
def test_two_ranks_find_what_one_does(images, tmp_path):
    looked_for(images, tmp_path / "one")
    first, _ = run_on_ranks(looked_for, images, tmp_path / "two", num_ranks=2)
    assert first[0].startswith("2 test images are also in")
    for name in ("pool_keys.npz", "duplicates.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_index_looks_for_copies_among_images_up_to_the_datas_limit(images, command: Command):
    (images / "b" / "copy.png").write_bytes((images / "b" / "00.png").read_bytes())
    for limit, found in ((256, 1), (255, 0)):
        done = command(["index", f"data={images}", f"data.max_pixels={limit}", f"out=o{limit}"])
        assert f"{found} copies pixel for pixel" in done.err
