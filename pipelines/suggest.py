"""Stage suggest: which unlabelled images to label next, a table and a contact sheet."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ssl_ft import dist
from ssl_ft.build.embedding import features_of, open_embedder, open_to_label
from ssl_ft.build.parts import choose_device
from ssl_ft.build.suggesting import (
    NEEDS,
    Opinion,
    check_memory,
    check_opinion,
    classifier_opinion,
    probe_opinion,
    write_suggestions,
)
from ssl_ft.config import SuggestSettings
from ssl_ft.errors import UserError
from ssl_ft.labelling.choose import choose
from ssl_ft.outputs import check_place
from ssl_ft.runlog import say


def main(settings: SuggestSettings) -> int:
    """Write the table and the sheet and print the table's path."""
    if settings.pool is None or not (settings.encoder or settings.classifier):
        raise UserError(NEEDS)
    dist.use_threads(settings.threads)
    embedder = open_embedder(settings.encoder or settings.classifier)
    out = check_place(Path(settings.out), example="suggest.csv", endings=(".csv", ".parquet"))
    images = open_to_label(settings.pool, settings.labelled)
    candidates, labelled = images.candidates, images.labelled
    check_opinion(settings, images)
    check_memory(settings, images, num_features=embedder.num_features)
    device = choose_device(settings.device)
    embed = partial(
        features_of, embedder, device=device, batch_size=settings.batch_size, workers=settings.workers,
        max_damaged_share=settings.max_damaged_share,
    )  # fmt: skip
    features, places = embed(candidates, label="pool")
    if settings.n > len(places):
        raise UserError(f"n={settings.n}: there are {len(places)} images to choose from; ask for fewer")
    known = labels = None
    if labelled is not None:
        known, read = embed(labelled, label="labelled")
        assert labelled.labels is not None, "labelled images have labels"
        labels = labelled.labels[read]
    opinion: Opinion | None = None
    if settings.by != "coverage":
        if settings.classifier:
            opinion = classifier_opinion(settings, candidates.subset(places), device=device)
        elif known is not None and labels is not None and labelled is not None:
            opinion = probe_opinion(settings, features, known, labels, labelled.class_names)
        else:
            say("nothing is labelled yet and no classifier is named: suggested by coverage alone")
    chosen = choose(
        torch.from_numpy(features), settings.n, by="coverage" if opinion is None else settings.by,
        coverage=settings.coverage, seed=settings.seed, labelled=None if known is None else torch.from_numpy(known),
        doubts=None if opinion is None else torch.from_numpy(opinion.doubts),
    ).numpy()  # fmt: skip
    if opinion is not None:
        opinion = replace(opinion, doubts=opinion.doubts[chosen], guesses=opinion.guesses[chosen])
    sheet = write_suggestions(out, candidates, places[chosen], opinion, white_level=embedder.contract.white_level)
    say(f"{settings.n} of {len(places)} images; to look at: {sheet}")
    print(out)
    return 0
