"""All that a comparison's cells say: scores, differences, verdicts, labels saved, costs; cells in, records out.

What was measured in seconds is kept apart (`Cost`), so that everything else is the same however many processes
worked. Files and sentences are made from these records in `report/`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_ft.evaluate.cells import Budget, Cell, CellKey
from ssl_ft.evaluate.comparison import (
    Difference,
    Resampled,
    Scored,
    Verdict,
    best_shares,
    differences,
    resample,
    verdicts,
)
from ssl_ft.evaluate.efficiency import BreakEven, Computing, Reach, break_evens, computing, reaches
from ssl_ft.evaluate.metrics import Estimate, Labels, estimate

# Trainings whose seconds differ by less than this share count as equally long.
_TIME_NOISE = 0.05


@dataclass(frozen=True)
class Row:
    """One model at one budget.

    Attributes:
        model: strategy, with the encoder where there are several.
        encoder, strategy, budget: its parts.
        num_labels: labels used, those to choose on included; the median of its cells.
        num_trained: parameters trained; the fewest of its cells, which may have chosen different settings.
        scores: accuracy, balanced accuracy, macro-F1 and calibration error with intervals.
        share_best: share of resamples in which it is the best of the budget.
        share_within: share in which it is within the tolerance of the best.
        chosen: the hyper-parameters chosen most often, and in how many of the cells.
        most_trained: the most parameters any of its cells trained; None where all trained as many.
    """

    model: str
    encoder: str
    strategy: str
    budget: Budget
    num_labels: int
    num_trained: int
    scores: tuple[Estimate, ...]
    share_best: float
    share_within: float
    chosen: str
    most_trained: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A strategy without scores for an encoder, and why: it is not defined for it, or failed to train."""

    encoder: str
    strategy: str
    reason: str


@dataclass(frozen=True)
class EncoderFacts:
    """What advice goes by, beside the labels.

    Attributes:
        name: of the encoder.
        pretrain_seconds: of its pretraining; None where its run is not at hand.
        pool_images: images it was pretrained on; None where not known.
        input_size: side of its input in pixels.
        num_parameters: of the encoder.
        shift: effect of `shift.py` between the labelled images and that pool, 0 = none; None where not measured.
        pretrain_cores: cores its pretraining kept busy, where cells keep one such core busy; None where either was on a
            GPU, or it is not known.
    """

    name: str
    pretrain_seconds: float | None
    pool_images: int | None
    input_size: int
    num_parameters: int
    shift: float | None
    pretrain_cores: int | None = None


@dataclass(frozen=True)
class Cost:
    """Seconds and memory of one model at one budget, means over its cells, and what they mean beside the baseline.

    Attributes:
        model, budget: which.
        seconds: of a cell, choosing included.
        train_seconds: of its final training.
        peak_memory_mb: the largest of any cell.
        computing: beside the baseline; None for baselines, and where the pretraining's seconds are not known.
    """

    model: str
    budget: Budget
    seconds: float
    train_seconds: float
    peak_memory_mb: float
    computing: Computing | None


@dataclass(frozen=True)
class Summary:
    """A comparison's findings; `costs` alone depend on the machine and on the day."""

    data: str
    baseline: str
    tolerance: float
    num_draws: int
    num_seeds: int
    num_classes: int
    num_test: int
    num_resamples: int
    encoders: tuple[EncoderFacts, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    verdicts: tuple[Verdict, ...]
    reaches: tuple[Reach, ...]
    break_evens: tuple[BreakEven, ...]
    left_out: tuple[LeftOut, ...]
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """What a comparison is to answer.

    Attributes:
        data: name of the labelled source.
        labels: int64 [N] of the test images.
        num_classes: C.
        encoders: facts of each.
        baseline: strategy every other is held against.
        tolerance: accuracy that does not matter.
        num_seeds: seeds of each draw.
        num_resamples: behind differences.
        num_score_resamples: behind the intervals of scores.
        seed: of the resamples.
        left_out: strategies not defined, or failed.
    """

    data: str
    labels: Labels
    num_classes: int
    encoders: tuple[EncoderFacts, ...]
    baseline: str
    tolerance: float
    num_seeds: int
    num_resamples: int
    seed: int
    left_out: tuple[LeftOut, ...]
    num_score_resamples: int = 1000


@dataclass(frozen=True, eq=False)
class _Group:
    """All cells of one model at one budget, draw by draw, the seeds of a draw neighbours."""

    model: str
    encoder: str
    strategy: str
    budget: Budget
    cells: tuple[Cell, ...]


def model_name(encoder: str, strategy: str, *, num_encoders: int) -> str:
    """How a model is called: its strategy, and its encoder where there are several."""
    return strategy if num_encoders == 1 else f"{strategy} ({encoder})"


def summarise(question: Question, cells: Sequence[tuple[CellKey, Cell]]) -> Summary:
    """Findings of all cells of a comparison; their order does not matter."""
    groups = _groups(cells)
    num_encoders = len({group.encoder for group in groups})
    resampled = resample_groups(question, groups)
    held_against = {group.model: model_name(group.encoder, question.baseline, num_encoders=num_encoders)
                    for group in groups}  # fmt: skip
    baselines = [held_against[model] for model in resampled.models]
    found = differences(resampled, baselines=baselines)
    shares = best_shares(resampled, tolerance=question.tolerance)
    num_draws = max(len(group.cells) for group in groups) // question.num_seeds
    reached = reaches(resampled, baselines=baselines)
    return Summary(
        data=question.data,
        baseline=question.baseline,
        tolerance=question.tolerance,
        num_draws=num_draws,
        num_seeds=question.num_seeds,
        num_classes=question.num_classes,
        num_test=len(question.labels),
        num_resamples=resampled.samples.shape[2],
        encoders=question.encoders,
        rows=tuple(_row(group, question, resampled, shares) for group in groups),
        differences=tuple(found),
        verdicts=tuple(verdicts(resampled, found, tolerance=question.tolerance, num_draws=num_draws)),
        reaches=tuple(reached),
        break_evens=tuple(break_evens(resampled, baselines=baselines)),
        left_out=question.left_out,
        costs=tuple(_costs(groups, reached, question)),
    )


def resample_cells(question: Question, cells: Sequence[tuple[CellKey, Cell]]) -> Resampled:
    """Accuracies of all cells under shared resamples."""
    return resample_groups(question, _groups(cells))


# Of a model at a budget, which is in two comparisons at most.
_RESAMPLES_A_MODEL = 100


def resample_groups(question: Question, groups: Sequence[_Group]) -> Resampled:
    scored = [Scored(group.model, group.budget, _num_labels(group), _predictions(group)) for group in groups]
    return resample(
        question.labels,
        scored,
        seed=question.seed,
        # No corrected p-value of a large family falls below 5 % unless its smallest possible one is small enough.
        num_resamples=max(question.num_resamples, _RESAMPLES_A_MODEL * len(groups)),
        repeats=question.num_seeds,
    )


def _groups(cells: Sequence[tuple[CellKey, Cell]]) -> list[_Group]:
    """Cells by model and budget, each in its order by draw and seed; models in order of first appearance."""
    num_encoders = len({key.encoder for key, _ in cells})
    places: dict[tuple[str, str, Budget], list[tuple[CellKey, Cell]]] = {}
    for key, cell in cells:
        places.setdefault((key.encoder, key.strategy, key.budget), []).append((key, cell))
    return [
        _Group(
            model_name(encoder, strategy, num_encoders=num_encoders),
            encoder,
            strategy,
            budget,
            tuple(cell for _, cell in sorted(members, key=lambda pair: (pair[0].draw, pair[0].seed))),
        )
        for (encoder, strategy, budget), members in places.items()
    ]


def _num_labels(group: _Group) -> int:
    return round(float(np.median([cell.num_labels for cell in group.cells])))


def _predictions(group: _Group) -> Labels:
    return np.stack([cell.predictions for cell in group.cells]).astype(np.int64)


def _row(group: _Group, question: Question, resampled: Resampled, shares: tuple[np.ndarray, np.ndarray]) -> Row:
    m, k = resampled.models.index(group.model), resampled.budgets.index(group.budget)
    scores = estimate(
        question.labels,
        _predictions(group),
        confidences=np.stack([cell.confidences for cell in group.cells]).astype(np.float64),
        num_classes=question.num_classes,
        seed=question.seed,
        repeats=question.num_seeds,
        num_resamples=question.num_score_resamples,
    )
    trained = [cell.num_trained for cell in group.cells]
    fewest, most = min(trained), max(trained)
    chosen, count = Counter(" ".join(cell.chosen) for cell in group.cells).most_common(1)[0]
    return Row(
        group.model,
        group.encoder,
        group.strategy,
        group.budget,
        _num_labels(group),
        fewest,
        tuple(scores),
        float(shares[0][m, k]),
        float(shares[1][m, k]),
        f"{chosen or 'nothing to choose'} ({count} of {len(group.cells)})",
        None if most == fewest else most,
    )


def _costs(groups: Sequence[_Group], reached: Sequence[Reach], question: Question) -> list[Cost]:
    seconds = {(g.model, g.budget): float(np.mean([cell.train_seconds for cell in g.cells])) for g in groups}
    # A cell computes on one core: what several spent at once is added up.
    spent = {
        facts.name: None if facts.pretrain_seconds is None else facts.pretrain_seconds * (facts.pretrain_cores or 1)
        for facts in question.encoders
    }
    saved = {(reach.model, reach.budget): reach for reach in reached}
    found = []
    for group in groups:
        reach, pretraining = saved.get((group.model, group.budget)), spent[group.encoder]
        beside = None
        if reach is not None and pretraining is not None:
            beside = computing(
                reach,
                pretrain_seconds=pretraining,
                seconds=seconds[group.model, group.budget],
                baseline_seconds=seconds[reach.baseline, group.budget],
                margin=_TIME_NOISE * seconds[reach.baseline, group.budget],
            )
        whole = float(np.mean([cell.seconds for cell in group.cells]))
        memory = max(cell.peak_memory_mb for cell in group.cells)
        found.append(Cost(group.model, group.budget, whole, seconds[group.model, group.budget], memory, beside))
    return found
