"""What the stage neighbors leaves: the table, the contact sheets, and which neighbour is the query itself."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.data.duplicates import content_keys
from ssl_ft.data.listing import evenly_spread
from ssl_ft.data.source import Source
from ssl_ft.errors import UserError, short_path
from ssl_ft.outputs import check_place, write_rows
from ssl_ft.report.contact_sheets import Tile, read_picture, write_sheet

_TABLE, _SHEET = "neighbours.csv", "neighbours-{:02d}.png"
_OURS = re.compile(r"neighbours(\.csv|-\d\d+\.png)")
# The same pixels give the same features but for rounding; those less alike need not be compared by pixels.
_ALIKE = 0.999


@dataclass(frozen=True, eq=False)
class Found:
    """Neighbours of all readable queries.

    Attributes:
        queries: where the queries come from.
        pool: where their neighbours come from.
        asked: int64 [M], which images of `queries`.
        indices: int64 [M, k], which images of `pool`, nearest first.
        similarities: float32 [M, k], cosines.
        contract: the encoder's input.
    """

    queries: Source
    pool: Source
    asked: NDArray[np.int64]
    indices: NDArray[np.int64]
    similarities: NDArray[np.float32]
    contract: InputContract

    def same_images(self, *, workers: int) -> NDArray[np.bool_]:
        """Which neighbours are the query itself, pixel for pixel, bool [M, k]; only those very much alike are read."""
        row, column = np.nonzero(self.similarities >= _ALIKE)
        same = np.zeros(self.indices.shape, bool)
        if not len(row):
            return same
        near, of_near = np.unique(self.indices[row, column], return_inverse=True)
        ask, of_ask = np.unique(self.asked[row], return_inverse=True)
        level = self.contract.white_level
        ours = content_keys(self.queries.subset(ask), workers=workers, white_level=level).pixels[of_ask]
        theirs = content_keys(self.pool.subset(near), workers=workers, white_level=level).pixels[of_near]
        same[row, column] = (ours == theirs).all(axis=1) & ours.any(axis=1)
        return same


def is_table(out: Path) -> bool:
    """Whether `out` names a table and not a folder."""
    return out.suffix.lower() in (".csv", ".parquet")


def place_of(out: Path) -> Path:
    """Where to write, found fit before the work: a table in a folder that is there, or a folder of our own.

    Raises:
        UserError: the folder holds other things, or cannot be made.
    """
    if is_table(out):
        return check_place(out, example=_TABLE)
    if out.is_file():
        raise UserError(f"out={short_path(out)} is a file; name a folder, or a table that ends in .csv or .parquet")
    foreign = sorted(path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)) if out.is_dir() else []
    if foreign:
        raise UserError(f"out={short_path(out)} holds other things ({', '.join(foreign[:3])}); choose another folder")
    if not out.parent.is_dir():
        raise UserError(f"out={short_path(out)}: there is no folder {short_path(out.parent)}; make it first")
    return out


def write_table(out: Path, found: Found, same: NDArray[np.bool_]) -> None:
    """Write query, rank, neighbour, similarity, same_image: one row a neighbour."""
    rows = [
        (found.queries.names[query], rank + 1, found.pool.names[int(index)], float(similarity), bool(is_same))
        for query, *columns in zip(found.asked.tolist(), found.indices, found.similarities, same, strict=True)
        for rank, (index, similarity, is_same) in enumerate(zip(*columns, strict=True))
    ]
    if not is_table(out):
        out.mkdir(exist_ok=True)
        for path in out.iterdir():
            path.unlink()  # ours alone, see `place_of`
        out = out / _TABLE
    write_rows(out, ["query", "rank", "neighbour", "similarity", "same_image"], rows)


def write_sheets(out: Path, found: Found, same: NDArray[np.bool_], *, num_rows: int, most_pages: int) -> list[Path]:
    """Write pages of queries with their neighbours; of more queries than they hold, some evenly spread."""
    count = min(len(found.asked), num_rows * most_pages)
    shown = evenly_spread(len(found.asked), most=count)
    pages: list[Path] = []
    for start in range(0, count, num_rows):
        number = len(pages) + 1
        rows = [_row(found, same, place) for place in shown[start : start + num_rows].tolist()]
        title = f"Left: query. Right: nearest images by cosine. Page {number} of {-(-count // num_rows)}"
        title += "" if count == len(found.asked) else f", {count} of {len(found.asked)} queries"
        pages.append(write_sheet(rows, out / _SHEET.format(number), title=title, has_queries=True))
    return pages


def _row(found: Found, same: NDArray[np.bool_], place: int) -> list[Tile]:
    level, query = found.contract.white_level, int(found.asked[place])
    tiles = [Tile(read_picture(found.queries, query, white_level=level), (found.queries.names[query], "query"))]
    for index, similarity, is_same in zip(
        found.indices[place].tolist(), found.similarities[place].tolist(), same[place].tolist(), strict=True
    ):
        words = (f"{similarity:.3f}" + (" same image" if is_same else ""), found.pool.names[index])
        tiles.append(Tile(read_picture(found.pool, index, white_level=level), words, is_marked=is_same))
    return tiles
