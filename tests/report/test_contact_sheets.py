"""Contact sheets with words: pictures whole and in their place, marks, long words cut, odd images shown somehow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from ssl_ft.report.contact_sheets import TILE, Tile, _cut, read_picture, write_sheet
from tests.pools import noise_images, source_of

MARK = (200, 60, 20)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def has_picture(sheet: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether the pixels stand somewhere on the sheet, looked for by their first row."""
    height, width = pixels.shape[:2]
    rows = np.lib.stride_tricks.sliding_window_view(sheet[: len(sheet) - height + 1], (width, 3), axis=(1, 2))[:, :, 0]
    places = np.argwhere((rows == pixels[0]).all(axis=(2, 3)))
    return any(np.array_equal(sheet[y : y + height, x : x + width], pixels) for y, x in places)


@pytest.mark.parametrize("has_queries", [False, True])
def test_every_picture_is_there_and_rows_may_differ_in_length(tmp_path, has_queries):
    images = noise_images(5, side=16)
    tiles = [Tile(image, (f"{number}", "name")) for number, image in enumerate(images)]
    out = write_sheet([tiles[:3], tiles[3:]], tmp_path / "s.png", title="Words", has_queries=has_queries)
    sheet = read(out)
    for image in images:
        assert has_picture(sheet, image.repeat(TILE // 16, axis=0).repeat(TILE // 16, axis=1))
    assert not (sheet == MARK).all(axis=2).any()
    assert (out.parent / "s.png").read_bytes() == out.read_bytes()


def test_pictures_keep_their_shape_and_large_ones_shrink(tmp_path):
    wide = np.full((40, 400, 3), (10, 200, 30), np.uint8)
    sheet = read(
        write_sheet([[Tile(wide, ("wide",), is_marked=True)]], tmp_path / "s.png", title="", has_queries=False)
    )
    inside = np.argwhere((sheet == (10, 200, 30)).all(axis=2))
    assert (inside.max(0) - inside.min(0) + 1).tolist() == [round(40 * TILE / 400), TILE]
    framed = np.argwhere((sheet == MARK).all(axis=2))
    assert (framed.min(0) < inside.min(0)).all()


def test_a_title_wider_than_its_tiles_is_whole(tmp_path):
    title = "a title that is much wider than the single tile that stands below it"
    tile = Tile(noise_images(1, side=8)[0], ("x",))
    sheet = read(write_sheet([[tile]], tmp_path / "s.png", title=title, has_queries=False))
    assert sheet.shape[1] > ImageFont.load_default(12).getlength(title)
    assert (sheet[:, -8:] == 255).all()


def test_of_long_words_the_end_is_kept():
    font = ImageFont.load_default(12)
    assert _cut("short.png", font) == "short.png"
    cut = _cut("a/very/long/path/that/does/not/fit/0001.png", font)
    assert cut.startswith("...")
    assert cut.endswith("/0001.png")
    assert font.getlength(cut) <= TILE


def test_images_of_any_channels_are_shown():
    grey, deep = noise_images(1, side=6, channels=1)[0], noise_images(1, side=6, channels=5)[0]
    source = source_of([grey, deep, b"no image"])
    assert np.array_equal(read_picture(source, 0), grey.repeat(3, axis=2))
    assert np.array_equal(read_picture(source, 1), deep[:, :, :3])
    assert np.unique(read_picture(source, 2)).tolist() == [128]
