"""Contact sheets: rows of equal tiles as one PNG, with its caption beside it as JSON. The stages call this.

Images come in as uint8 arrays; nothing here decodes, normalises or chooses them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SMALLEST_TILE = 64
LARGEST_TILE = 192
_GAP = 4


def picture_grid(
    rows: Sequence[NDArray[np.uint8]],
    output: Path,
    *,
    caption: str,
    scale: int | None = None,
    row_names: Sequence[str] = (),
) -> Path:
    """Writes the rows as one PNG and {"caption", "rows"} as JSON beside it; returns the PNG's path.

    Say "patch statistics" in the caption where predictions are shown with the true patches' mean and
    spread: the report then warns its readers.

    Args:
        rows: uint8 [N, H, W] or [N, H, W, C], the same H and W in all rows, N may differ. Of more than three
            channels the first three are shown, of two the first.
        output: Path of the PNG; its folder is made where absent, an existing picture is replaced.
        caption: What the picture shows; a sentence.
        scale: Whole factor that enlarges tiles without smoothing. None: the smallest that makes the shorter
            side at least 64 pixels; tiles whose longer side is above 192 pixels are then reduced to that.
        row_names: What each row is, top to bottom; empty or one name a row.
    """
    from PIL import Image

    assert rows, "a contact sheet needs a row"
    assert not row_names or len(row_names) == len(rows), f"{len(row_names)} names for {len(rows)} rows"
    assert scale is None or scale >= 1, f"scale {scale} is below 1"
    tiles = [_as_rgb(row) for row in rows]
    height, width = tiles[0].shape[1:3]
    assert all(row.shape[1:3] == (height, width) for row in tiles), "tiles of different sizes in one sheet"
    tile_size = _tile_size(height, width, scale)
    columns = max(len(row) for row in tiles)
    # Gaps are transparent, so that the sheet sits well on a light and on a dark page.
    size = (columns * (tile_size[0] + _GAP) - _GAP, len(rows) * (tile_size[1] + _GAP) - _GAP)
    sheet = Image.new("RGBA", (max(size[0], 1), size[1]), (0, 0, 0, 0))
    resampling = Image.Resampling.NEAREST if tile_size[0] >= width else Image.Resampling.BOX
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            image = Image.fromarray(tile).resize(tile_size, resampling)
            sheet.paste(image, (x * (tile_size[0] + _GAP), y * (tile_size[1] + _GAP)))
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, format="PNG", optimize=True)
    words = json.dumps({"caption": caption, "rows": list(row_names)}, ensure_ascii=False, indent=2)
    output.with_suffix(".json").write_text(words + "\n", encoding="utf-8")
    return output


def _as_rgb(row: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, H, W] or [N, H, W, C] -> uint8 [N, H, W, 3]."""
    assert row.dtype == np.uint8, f"pictures are uint8, not {row.dtype}"
    assert row.ndim in (3, 4), f"pictures are [N, H, W] or [N, H, W, C], not {row.shape}"
    tiles = row[..., None] if row.ndim == 3 else row
    if tiles.shape[-1] < 3:
        tiles = np.repeat(tiles[..., :1], 3, axis=-1)
    return np.ascontiguousarray(tiles[..., :3])


def _tile_size(height: int, width: int, scale: int | None) -> tuple[int, int]:
    """Width and height of a tile in pixels."""
    if scale is None:
        if max(height, width) > LARGEST_TILE:
            shrink = LARGEST_TILE / max(height, width)
            return max(1, round(width * shrink)), max(1, round(height * shrink))
        scale = -(-SMALLEST_TILE // min(height, width))
    return width * scale, height * scale
