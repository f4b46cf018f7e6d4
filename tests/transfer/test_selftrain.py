"""Rounds of self-training: who teaches whom, what is kept, when it stops; no image is trained on here."""

from dataclasses import dataclass

import numpy as np
import pytest

from ssl_ft.evaluate.probe import LinearProbe, fit_linear
from ssl_ft.transfer.pseudo_labels import PseudoLabels, choose_pseudo_labels
from ssl_ft.transfer.selftrain import Round, SelfTrained, self_train


@dataclass(frozen=True)
class Fake:
    """A classifier that is nothing but its scores."""

    name: str
    val_accuracy: float | None
    val_loss: float | None


def go(
    scores: list[tuple[float, float]], *, rounds: int = 9, num_pseudo: int = 3, stop: bool = False
) -> tuple[SelfTrained[Fake], list[str], list[Round]]:
    """Teacher and students with these scores on val; gives the outcome and who labelled."""
    students = [Fake(str(number), *score) for number, score in enumerate(scores)]
    teachers, told = list[str](), list[Round]()

    def guess(teacher: Fake) -> PseudoLabels:
        teachers.append(teacher.name)
        rows = np.arange(num_pseudo)
        return PseudoLabels(rows, rows % 2, np.array([5, 4]))

    found = self_train(
        students[0], guess=guess, train=lambda number, chosen: students[number], most_rounds=rounds,
        on_round=told.append, should_stop=lambda: stop,
    )  # fmt: skip
    return found, teachers, told


@pytest.mark.parametrize(
    ("scores", "best", "why"),
    [
        ([(0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.7, 1.0), (0.9, 1.0)], "2", "round 3 was no better"),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], "1", "round 2 was no better"),  # the loss decides,
        ([(0.5, 1.0), (0.4, 0.1)], "0", "round 1 was no better"),  # but accuracy goes first
    ],
)
def test_it_stops_once_a_student_is_no_better_and_keeps_the_best(scores, best, why):
    found, teachers, told = go(scores)
    assert found.best.name == best
    assert why in found.why_stopped
    assert teachers == [str(number) for number in range(len(teachers))]  # the best so far labels
    assert [one.is_better for one in told] == [True] * int(best) + [False]
    assert found.is_student == (best != "0")
    assert told[0].num_pseudo == (2, 1)
    assert told[0].num_sure == (5, 4)


def test_it_ends_with_the_rounds():
    found, teachers, _ = go([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0)], rounds=2)
    assert found.best.name == "2"
    assert teachers == ["0", "1"]
    assert found.why_stopped == "all 2 rounds were done"


def test_without_pseudo_labels_the_teacher_stays():
    found, _, told = go([(0.1, 1.0), (0.2, 1.0)], num_pseudo=0)
    assert found.best.name == "0"
    assert not told
    assert "sure enough" in found.why_stopped


def test_a_wish_to_stop_keeps_what_was_complete():
    found, _, told = go([(0.1, 1.0), (0.9, 1.0)], stop=True)
    assert (found.best.name, told, found.why_stopped) == ("0", [], "stopped from outside")


@dataclass(frozen=True, eq=False)
class Linear:
    """A real classifier: a penalised logistic regression."""

    probe: LinearProbe
    val_accuracy: float
    val_loss: float


@pytest.mark.parametrize("seed", range(5))
def test_it_gains_where_classes_are_clusters(seed):
    """Three clusters in 30 dimensions, four labels of each: the pool shows where the clusters are."""
    generator = np.random.default_rng(seed)
    centres = 2.8 * generator.normal(size=(3, 30)) / np.sqrt(30)

    def draw(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(3 * each) % 3
        return centres[labels] + generator.normal(size=(3 * each, 30)), labels.astype(np.int64)

    (x, y), (val_x, val_y), (pool, _), (test_x, test_y) = draw(4), draw(20), draw(300), draw(500)
    mean, scale = np.zeros(30), np.ones(30)

    def fit(features: np.ndarray, labels: np.ndarray) -> Linear:
        probe = fit_linear(features, labels, strength=0.1, num_classes=3, mean=mean, scale=scale)
        shares = probe.predict_proba(val_x)
        loss = -np.log(shares[np.arange(len(val_y)), val_y]).mean()
        return Linear(probe, float((shares.argmax(1) == val_y).mean()), float(loss))

    teacher = fit(x, y)
    found = self_train(
        teacher,
        guess=lambda own: choose_pseudo_labels(
            own.probe.predict_proba(pool), threshold=0.8, num_labelled=np.array([4, 4, 4]), most_ratio=2.0
        ),
        train=lambda number, chosen: fit(
            np.concatenate([x, pool[chosen.rows]]), np.concatenate([y, chosen.labels])
        ),
        most_rounds=5,
        on_round=lambda one: None,
    )  # fmt: skip
    before, after = ((one.probe.predict_proba(test_x).argmax(1) == test_y).mean() for one in (teacher, found.best))
    assert found.is_student
    assert after > before + 0.02, (before, after)
