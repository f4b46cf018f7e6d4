"""Stage neighbors: the nearest images of a pool for each query, a table and contact sheets."""

from pathlib import Path

import torch

from ssl_ft import dist
from ssl_ft.build.embedding import features_of, open_embedder
from ssl_ft.build.neighbours import Found, is_table, place_of, write_sheets, write_table
from ssl_ft.build.parts import choose_device
from ssl_ft.config import NeighborsSettings
from ssl_ft.data.source import open_source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.knn import NearestSoFar
from ssl_ft.evaluate.stream import Damage, walk_outputs
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import say


def main(settings: NeighborsSettings) -> int:
    """Write the table and the sheets and print where; the pool passes by in blocks and is never held."""
    if not settings.queries or not settings.pool:
        raise UserError(
            "neighbors needs queries, a pool and an encoder: `ssl-ft neighbors QUERIES pool=POOL "
            "encoder=runs/pretrain-...`"
        )
    dist.use_threads(settings.threads)
    embedder = open_embedder(settings.encoder)
    queries, pool = open_source(settings.queries), open_source(settings.pool)
    if settings.k > len(pool):
        raise UserError(f"k={settings.k}: {pool.location} has {len(pool)} images; ask for that many neighbours at most")
    out = place_of(Path(settings.out))
    device = choose_device(settings.device)
    features, asked = features_of(
        embedder, queries, label="queries", device=device, batch_size=settings.batch_size, workers=settings.workers,
        max_damaged_share=settings.max_damaged_share,
    )  # fmt: skip
    nearest = NearestSoFar(torch.from_numpy(features), k=settings.k)
    damage = Damage(pool, max_share=settings.max_damaged_share)
    with ProgressLine("pool", total=len(pool)) as progress:
        for block in walk_outputs(
            embedder.model, pool, embedder.contract, device=device, batch_size=settings.batch_size, damage=damage,
            workers=settings.workers,
        ):  # fmt: skip
            nearest.add(torch.from_numpy(block.outputs), torch.from_numpy(block.indices))
            progress.update(block.done)
    for sentence in damage.sentences():
        say(sentence)
    found = Found(queries, pool, asked, nearest.indices.numpy(), nearest.similarities.numpy(), embedder.contract)
    same = found.same_images(workers=settings.workers)
    write_table(out, found, same)
    if not is_table(out):
        write_sheets(out, found, same, num_rows=settings.rows, most_pages=settings.pages)
    say(f"{len(asked)} queries, {nearest.indices.shape[1]} neighbours each of {len(pool)} images")
    say(f"{int(same.sum())} of the neighbours are the query itself, pixel for pixel; they are marked")
    print(out)
    return 0
