"""Contact sheets with words: queries with their nearest images beside them, and suggested images in a grid. PNG pages.

Rows of tiles without words, for run folders and reports, are in `pictures.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ssl_ft.data.images import DamagedImage, decode
from ssl_ft.data.source import Source

TILE = 112
_GAP, _MARGIN, _TEXT, _LINE = 8, 12, 12, 16
_PAPER, _INK, _FAINT, _MARK = (255, 255, 255), (25, 25, 25), (110, 110, 110), (200, 60, 20)


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture and what stands under it.

    Attributes:
        pixels: uint8 [h, w, 3].
        words: lines under it, cut where they are too long.
        is_marked: framed, and its words in the colour of the frame.
    """

    pixels: NDArray[np.uint8]
    words: tuple[str, ...]
    is_marked: bool = False


def read_picture(source: Source, index: int, *, white_level: int = 65535) -> NDArray[np.uint8]:
    """The whole image, uint8 [h, w, 3]; of more than three channels the first three, an unreadable one is grey."""
    try:
        image = decode(source.read(index), white_level=white_level)
    except (DamagedImage, OSError):
        return np.full((TILE, TILE, 3), 128, np.uint8)
    shown = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def write_sheet(rows: Sequence[Sequence[Tile]], output: Path, *, title: str, has_queries: bool) -> Path:
    """Write rows of tiles as one PNG and return its path.

    Args:
        rows: tiles from left to right; rows may differ in length.
        output: the PNG; its folder is there.
        title: the line on top.
        has_queries: a gap and a line set the first tile of each row apart.
    """
    assert rows, "a contact sheet needs a row"
    columns, lines = max(map(len, rows)), max(len(tile.words) for row in rows for tile in row)
    apart = 2 * _GAP if has_queries else 0
    height = TILE + lines * _LINE + _GAP
    font = ImageFont.load_default(_TEXT)
    title_height = _LINE + _GAP
    width = max(2 * _MARGIN + columns * (TILE + _GAP) + apart, 2 * _MARGIN + round(font.getlength(title)))
    sheet = Image.new("RGB", (width, 2 * _MARGIN + title_height + len(rows) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    for r, row in enumerate(rows):
        top = _MARGIN + title_height + r * height
        for c, tile in enumerate(row):
            left = _MARGIN + c * (TILE + _GAP) + (apart if c else 0)
            _paint(sheet, draw, tile, left=left, top=top, font=font)
    if has_queries:
        x = _MARGIN + TILE + _GAP + apart // 2 - _GAP // 2
        draw.line([(x, _MARGIN + title_height), (x, sheet.height - _MARGIN)], fill=_FAINT)
    sheet.save(output, format="PNG", optimize=True)
    return output


def _paint(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    *,
    left: int,
    top: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    picture = _fitted(tile.pixels)
    x, y = left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2
    sheet.paste(picture, (x, y))
    if tile.is_marked:
        draw.rectangle([x - 3, y - 3, x + picture.width + 2, y + picture.height + 2], outline=_MARK, width=3)
    for number, words in enumerate(tile.words):
        colour = _MARK if tile.is_marked else _FAINT if number else _INK
        draw.text((left, top + TILE + 2 + number * _LINE), _cut(words, font), fill=colour, font=font)


def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
    """Enlarged by a whole factor without smoothing, or reduced, to fit into a tile."""
    image = Image.fromarray(pixels)
    factor = TILE // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    shrink = TILE / max(image.size)
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return image.resize(size, Image.Resampling.BOX)


def _cut(words: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The end of a text that fits under a tile: of a path, its end tells more than its beginning."""
    if font.getlength(words) <= TILE:
        return words
    while words and font.getlength("..." + words) > TILE:
        words = words[1:]
    return "..." + words
