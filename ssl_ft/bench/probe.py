"""The linear probe over many strengths and draws beside scikit-learn's LogisticRegression in a loop.

Both sides get the same float32 features, draws and strengths, choose by log-loss on val and are scored on the same new
rows. Timing alone would reward stopping early, so the rows also say how far the two answers lie apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_ft.bench.timing import Row, at_least, at_most, compare, wall_seconds
from ssl_ft.evaluate.probe import STRENGTHS, probe_draws

# Distance between two class means in deviations of the noise: 80 % or so of 10 classes can be told apart.
_DISTANCE = 4.2
_TRAIN_SHARE = 0.8
_WARM_UP_IMAGES = 256
# More than any strength needs: so the peer ends by its own default tolerance, not at its default of 100 with a warning.
_PEER_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class Task:
    """What both sides have to solve.

    Attributes:
        features: float32 [2N, D], standardised; the first N are for train and val, the others test.
        labels: int64 [2N].
        draws: (train, val) rows of each draw, together N.
        strengths: to choose from, strongest first.
        num_classes: C, three or more.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    draws: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    strengths: list[float]
    num_classes: int

    @property
    def test(self) -> slice:
        """The rows that no side learns from."""
        return slice(len(self.labels) // 2, None)


@dataclass(frozen=True)
class Outcome:
    """What a side came to on one draw.

    Attributes:
        strength: chosen on val.
        accuracy: share of the test rows that the probe of this strength gets right.
    """

    strength: float
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """Both sides, one entry a draw.

    Attributes:
        our_seconds: all draws were solved at each turn; this is that time over their number.
        peer_seconds: to choose the strength of the draw and fit its probe.
        ours: what came out.
        peer: the peer's.
        strengths: what there was to choose from.
    """

    our_seconds: list[float]
    peer_seconds: list[float]
    ours: list[Outcome]
    peer: list[Outcome]
    strengths: list[float]

    @property
    def accuracy_points(self) -> float:
        """How far the mean accuracies over draws lie apart, in points of 100."""
        ours, peer = (np.mean([one.accuracy for one in side]) for side in (self.ours, self.peer))
        return float(100 * abs(ours - peer))

    @property
    def strength_steps(self) -> int:
        """How far the chosen strengths lie apart in the worst draw, in steps of the grid."""
        places = [[self.strengths.index(one.strength) for one in side] for side in (self.ours, self.peer)]
        return max(abs(here - there) for here, there in zip(places[0], places[1], strict=True))


def measure(*, rounds: int) -> Iterator[Row]:
    """Rows of time, accuracy and strength: 20 strengths on 20,000 × 512 features of 10 classes.

    Args:
        rounds: draws; each is a turn of both sides.
    """
    size = {"num_images": 20_000, "num_features": 512, "num_classes": 10, "num_strengths": 20}
    found = probe_rows(**size, draws=rounds, seed=0)
    what = f"linear probe, 20 strengths × {rounds} draws on 20,000 × 512 features"
    accuracy = np.mean([one.accuracy for one in found.ours])
    note = f"seconds a draw: the strength chosen on val of a fifth, and its probe; accuracy {accuracy:.1%} on new rows"
    yield compare(
        f"{what}: times faster than scikit-learn in a loop",
        found.our_seconds,
        found.peer_seconds,
        unit="s",
        is_speed_up=True,
        bar=at_least(10.0),
        note=f"{note}; peer: LogisticRegression with its default solver and tolerance, float32",
    )
    note = "means over draws"
    yield Row(
        f"{what}: accuracies apart", found.accuracy_points, None, "points", note=note, bar=at_most(0.1, of="ours")
    )
    note = "in the worst draw"
    yield Row(f"{what}: strengths apart", found.strength_steps, None, "steps", note=note, bar=at_most(1, of="ours"))


def probe_rows(
    *, num_images: int, num_features: int, num_classes: int, num_strengths: int, draws: int, seed: int
) -> Comparison:
    """Solve every draw by both sides and time them in turns (all draws of ours, one of the peer's), after a small task.

    Args:
        num_images: N of train and val; as many again are test.
        num_features: D.
        num_classes: C, three or more (scikit-learn's penalty means something else for two).
        num_strengths: evenly spaced in logarithm over the range of the probe's own.
        draws: random splits into 80 % train and 20 % val.
        seed: of features and draws.
    """
    small = make_task(_WARM_UP_IMAGES, num_features, num_classes=num_classes, num_strengths=1, draws=1, seed=seed)
    ours(small), peer(small, 0)
    task = make_task(
        num_images, num_features, num_classes=num_classes, num_strengths=num_strengths, draws=draws, seed=seed
    )
    our_seconds, peer_seconds, theirs = [], [], list[Outcome]()
    mine: list[Outcome] = []
    for draw in range(draws):
        our_seconds.append(wall_seconds(lambda: mine.extend(ours(task))) / draws)
        peer_seconds.append(wall_seconds(partial(_append, theirs, task, draw)))
    return Comparison(our_seconds, peer_seconds, mine[:draws], theirs, task.strengths)


def make_task(
    num_images: int, num_features: int, *, num_classes: int, num_strengths: int, draws: int, seed: int
) -> Task:
    """Classes that overlap: their means in noise whose deviation falls from axis to axis and is mixed over features.

    As with a network's features, few axes carry most of the variance. Arguments as in `probe_rows`.
    """
    assert num_classes > 2, "with two classes the peer's penalty is another one"
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=2 * num_images)
    means = generator.standard_normal((num_classes, num_features)) * _DISTANCE / np.sqrt(2 * num_features)
    values = generator.standard_normal((2 * num_images, num_features), dtype=np.float32)
    values += means.astype(np.float32)[labels]
    values *= (np.arange(1, num_features + 1) ** -0.5).astype(np.float32)
    mixing = generator.standard_normal((num_features, num_features), dtype=np.float32)
    orders = [generator.permutation(num_images) for _ in range(draws)]
    cut = round(_TRAIN_SHARE * num_images)
    strengths = np.geomspace(STRENGTHS[0], STRENGTHS[-1], num_strengths).tolist()
    features = values @ mixing
    features -= features[:num_images].mean(axis=0)
    features /= features[:num_images].std(axis=0)
    return Task(features, labels, [(order[:cut], order[cut:]) for order in orders], strengths, num_classes)


def ours(task: Task) -> list[Outcome]:
    """All strengths of a draw solved together, then the probes of all draws."""
    num_images, num_features = task.test.start, task.features.shape[1]
    probes = probe_draws(
        task.features[:num_images],
        task.labels[:num_images],
        task.draws,
        num_classes=task.num_classes,
        mean=np.zeros(num_features),
        scale=np.ones(num_features),
        strengths=task.strengths,
    )
    test = task.features[task.test]
    return [Outcome(probe.strength, _share_right(probe.predict_proba(test), task)) for probe in probes]


def peer(task: Task, draw: int) -> Outcome:
    """One `LogisticRegression` after the other, with its default solver (L-BFGS) and tolerance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    train, val = task.draws[draw]
    features, held_out = task.features[train], task.features[val]
    tried = []
    for strength in task.strengths:
        model = LogisticRegression(C=1 / (strength * len(train)), max_iter=_PEER_STEPS)
        model.fit(features, task.labels[train])
        loss = log_loss(task.labels[val], model.predict_proba(held_out), labels=model.classes_)
        tried.append((loss, -strength, model))
    _, negative, best = min(tried, key=lambda one: one[:2])
    return Outcome(-negative, _share_right(best.predict_proba(task.features[task.test]), task))


def _append(found: list[Outcome], task: Task, draw: int) -> None:
    found.append(peer(task, draw))


def _share_right(shares: NDArray[np.floating[Any]], task: Task) -> float:
    return float((shares.argmax(axis=1) == task.labels[task.test]).mean())
