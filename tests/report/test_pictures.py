"""Contact sheets: every tile in its place with its own pixels, and the caption beside the picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_ft.report.pictures import picture_grid


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_tiles_stand_in_rows_with_transparent_gaps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), rng.integers(0, 256, (2, 8, 8), dtype=np.uint8)]
    output = picture_grid(rows, tmp_path / "new" / "views.png", caption="Views.", row_names=("original", "grey"))
    sheet = read(output)
    assert sheet.shape == (2 * 64 + 4, 3 * 64 + 2 * 4, 4)
    np.testing.assert_array_equal(sheet[0:64:8, 68:132:8, :3], rows[0][1])
    np.testing.assert_array_equal(sheet[75:132:8, 75:132:8, 0], rows[1][1])
    np.testing.assert_array_equal(sheet[75:132:8, 75:132:8, 2], rows[1][1])
    assert (sheet[:64, :64, 3] == 255).all()
    assert (sheet[64:68, :, 3] == 0).all()
    assert (sheet[68:, 136:, 3] == 0).all(), "a missing tile is no black tile"
    words = json.loads((tmp_path / "new" / "views.json").read_text("utf-8"))
    assert words == {"caption": "Views.", "rows": ["original", "grey"]}


@pytest.mark.parametrize(
    ("shape", "scale", "size"),
    [
        ((1, 28, 28), None, (84, 84)),
        ((1, 64, 80, 3), None, (64, 80)),
        ((1, 20, 40), None, (80, 160)),
        ((1, 400, 200, 3), None, (192, 96)),
        ((1, 400, 200, 3), 1, (400, 200)),
        ((1, 8, 8), 3, (24, 24)),
        ((1, 1, 1), None, (64, 64)),
    ],
)
def test_tiles_are_large_enough_to_see_and_small_enough_to_send(
    tmp_path: Path, shape: tuple[int, ...], scale: int | None, size: tuple[int, int]
) -> None:
    output = picture_grid([np.zeros(shape, np.uint8)], tmp_path / "x.png", caption="", scale=scale)
    assert read(output).shape[:2] == size


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_channels_become_colours(tmp_path: Path, channels: int, shown: tuple[int, int, int]) -> None:
    row = np.broadcast_to(np.arange(channels, dtype=np.uint8) * 40 + 10, (1, 4, 4, channels))
    sheet = read(picture_grid([row], tmp_path / "x.png", caption=""))
    assert tuple(sheet[0, 0, :3]) == tuple(40 * channel + 10 for channel in shown)


def test_the_same_tiles_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)]
    one, other = (picture_grid(rows, tmp_path / name, caption="c").read_bytes() for name in ("a.png", "b.png"))
    assert one == other
