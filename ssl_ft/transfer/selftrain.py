"""Self-training: a teacher labels, a student learns from that and may become the teacher; stopped and chosen on val.

After Lee 2013, "Pseudo-label", and Xie et al. 2020, "Self-training with noisy student improves ImageNet
classification": the student sees stronger views than the teacher judged. How either is trained, and which guesses count
(`pseudo_labels.py`), is handed in; the test split never comes here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ssl_ft.transfer.pseudo_labels import PseudoLabels


class Scored(Protocol):
    """A trained classifier as far as choosing between two needs it."""

    @property
    def val_accuracy(self) -> float | None:
        """Share of val images it gets right."""
        ...

    @property
    def val_loss(self) -> float | None:
        """Its mean cross-entropy there."""
        ...


Classifier = TypeVar("Classifier", bound=Scored)


@dataclass(frozen=True)
class Round:
    """One student.

    Attributes:
        number: 1 for the first.
        num_pseudo: pseudo-labels it learnt from, by class.
        num_sure: guesses that were sure enough, by class, before the guard.
        val_accuracy: of the student.
        val_loss: of the student.
        is_better: than all before it, on val; then it is the next teacher.
    """

    number: int
    num_pseudo: tuple[int, ...]
    num_sure: tuple[int, ...]
    val_accuracy: float
    val_loss: float
    is_better: bool


@dataclass(frozen=True, eq=False)
class SelfTrained(Generic[Classifier]):
    """What came of it.

    Attributes:
        best: the classifier that was best on val: a student, or the first teacher.
        rounds: every student that was trained.
        why_stopped: in words.
    """

    best: Classifier
    rounds: tuple[Round, ...]
    why_stopped: str

    @property
    def is_student(self) -> bool:
        """Whether any student was better than the first teacher."""
        return any(one.is_better for one in self.rounds)


def self_train(
    teacher: Classifier,
    *,
    guess: Callable[[Classifier], PseudoLabels],
    train: Callable[[int, PseudoLabels], Classifier],
    most_rounds: int,
    on_round: Callable[[Round], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> SelfTrained[Classifier]:
    """Go round by round until a student is not better on val than its teacher, or no guess is sure enough.

    Better means higher accuracy on val, then lower cross-entropy, as in fine-tuning.

    Args:
        teacher: the baseline, scored on val.
        guess: a teacher's pseudo-labels.
        train: a student of a round from those.
        most_rounds: 1 or more.
        on_round: called after each.
        should_stop: whether the person wants to stop; asked after each round.
    """
    best, rounds = teacher, list[Round]()
    for number in range(1, most_rounds + 1):
        chosen = guess(best)
        if not len(chosen.rows):
            return SelfTrained(best, tuple(rounds), "no guess of the teacher was sure enough to be a label")
        student = train(number, chosen)
        if should_stop():
            return SelfTrained(best, tuple(rounds), "stopped from outside")
        rounds.append(_round(number, chosen, student, is_better=_score(student) > _score(best)))
        on_round(rounds[-1])
        if not rounds[-1].is_better:
            return SelfTrained(best, tuple(rounds), f"the student of round {number} was no better on val")
        best = student
    return SelfTrained(best, tuple(rounds), f"all {most_rounds} rounds were done")


def _score(classifier: Scored) -> tuple[float, float]:
    accuracy, loss = classifier.val_accuracy, classifier.val_loss
    assert accuracy is not None, "rounds are judged on val"
    assert loss is not None, "whoever has an accuracy has a loss"
    return accuracy, -loss


def _round(number: int, chosen: PseudoLabels, student: Scored, *, is_better: bool) -> Round:
    accuracy, loss = _score(student)
    counts = [0] * len(chosen.num_sure)
    for label in chosen.labels.tolist():
        counts[label] += 1
    return Round(number, tuple(counts), tuple(chosen.num_sure.tolist()), accuracy, -loss, is_better)
