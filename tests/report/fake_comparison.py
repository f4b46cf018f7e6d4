"""A finished comparison with plausible numbers and no training: cells, findings, run folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ssl_ft.evaluate.cells import Budget, Cell, CellKey
from ssl_ft.evaluate.summary import EncoderFacts, LeftOut, Question, Summary, summarise
from ssl_ft.report.comparison_files import write_summary
from tests.report.fake_runs import result, write_json

CHANCES: dict[str, dict[Budget, float]] = {
    "scratch": {2: 0.2, 10: 0.34, 50: 0.55},
    "probe": {2: 0.36, 10: 0.46, 50: 0.54},
    "full": {2: 0.33, 10: 0.47, 50: 0.62},
    "lora": {2: 0.35, 10: 0.47, 50: 0.6},
}


def fake_cells(
    *, encoders: tuple[str, ...] = ("simclr",), draws: int = 5, seeds: int = 1, images: int = 600
) -> tuple[Question, list[tuple[CellKey, Cell]]]:
    """Ten classes; of an encoder's strategies each is right as often as `CHANCES` says, on unequally hard images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, images)
    hard = rng.normal(0, 0.15, images)
    cells = []
    for encoder in encoders:
        for strategy, by_budget in CHANCES.items():
            for budget, chance in by_budget.items():
                for draw in range(draws):
                    for seed in range(seeds):
                        right = rng.random(images) < np.clip(chance + hard + rng.normal(0, 0.02), 0, 1)
                        predicted = np.where(right, labels, (labels + rng.integers(1, 10, images)) % 10)
                        cell = Cell(
                            predicted.astype(np.int16), rng.random(images).astype(np.float16),
                            ("optim.rate=0.003",), 1.2, 0.4, 100, 5130 if strategy == "probe" else 4_900_000,
                            10 * int(budget), 9.0 if strategy == "probe" else 40.0,
                            2.0 if strategy == "probe" else 15.0, 900.0,
                        )  # fmt: skip
                        cells.append((CellKey(encoder, strategy, budget, draw, seed), cell))
    facts = tuple(EncoderFacts(name, 420.0, 10_000, 48, 4_900_000, 0.02) for name in encoders)
    question = Question(
        "cifar10", labels, 10, facts, "scratch", 0.01, seeds, 2000, 0,
        (LeftOut(encoders[0], "adapter", "it has no place for one"),),
    )  # fmt: skip
    return question, cells


def write_comparison(folder: Path, *, encoders: tuple[str, ...] = ("simclr",)) -> Summary:
    """A run folder as the stage leaves it."""
    folder.mkdir(parents=True)
    question, cells = fake_cells(encoders=encoders)
    summary = summarise(replace(question, num_score_resamples=100), cells)
    write_summary(folder, summary)
    metrics = [
        {"name": score.name, "value": score.value, "low": score.low, "high": score.high, "n": score.n,
         "split": "test", "labels_per_class": row.budget, "model": row.model}
        for row in summary.rows for score in row.scores
    ]  # fmt: skip
    write_json(folder / "result.json", result("compare", metrics=metrics, test_scored=60, seconds=1234.0))
    return summary
