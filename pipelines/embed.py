"""Stage embed: features of any images into a file, block by block."""

from pathlib import Path

import numpy as np

from ssl_ft import dist
from ssl_ft.build.embedding import open_embedder
from ssl_ft.build.parts import choose_device
from ssl_ft.config import EmbedSettings
from ssl_ft.data.source import Source, open_source
from ssl_ft.errors import UserError
from ssl_ft.evaluate.stream import Damage, OutputBlock, walk_outputs
from ssl_ft.outputs import FEATURE_ENDINGS, FeatureRows, FeatureWriter, check_place
from ssl_ft.progress import ProgressLine
from ssl_ft.runlog import say

_SHORTEST = 1e-12  # an all-zero feature stays zero


def main(settings: EmbedSettings) -> int:
    """Write the file and print its path; nothing is written where images break the model's input contract."""
    if not settings.images:
        raise UserError("embed needs images and an encoder: `ssl-ft embed IMAGES encoder=runs/pretrain-...`")
    dist.use_threads(settings.threads)
    embedder = open_embedder(settings.encoder)
    source = open_source(settings.images)
    out = check_place(Path(settings.out), example="features.parquet", endings=FEATURE_ENDINGS)
    damage = Damage(source, max_share=settings.max_damaged_share)
    blocks = walk_outputs(
        embedder.model, source, embedder.contract, device=choose_device(settings.device),
        batch_size=settings.batch_size, damage=damage, workers=settings.workers,
    )  # fmt: skip
    with ProgressLine("features", total=len(source)) as progress, FeatureWriter(out) as writer:
        for block in blocks:
            writer.add(_rows(source, block, is_normalised=settings.normalise))
            progress.update(block.done)
    for sentence in damage.sentences():
        say(sentence)
    say(f"{writer.num_rows} images embedded by {embedder.folder}")
    print(out)
    return 0


def _rows(source: Source, block: OutputBlock, *, is_normalised: bool) -> FeatureRows:
    features, places = block.outputs, block.indices.tolist()
    if is_normalised:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _SHORTEST)
    labels = splits = None
    if source.labels is not None:
        labels = [source.class_names[label] if label >= 0 else "" for label in source.labels[block.indices].tolist()]
    if source.splits is not None:
        splits = [str(split) for split in source.splits[block.indices]]
    return FeatureRows([source.names[place] for place in places], features, labels, splits)
