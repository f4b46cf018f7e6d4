"""Rounds of self-training: who teaches whom, what is kept, when it stops; no image is trained on here."""

from dataclasses import dataclass

import numpy as np
import pytest

from ssl_ft.transfer.pseudo_labels import PseudoLabels
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
