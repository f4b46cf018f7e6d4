"""The check of ranks fails where a gather keeps only its own rank's gradient, or batch norm is each rank's own.

That it passes where nothing is broken, `test_stage.py` shows.
"""

from collections.abc import Callable

import pytest
import torch

from ssl_ft import dist
from ssl_ft.doctor import ranks, subject
from ssl_ft.doctor.spawn import Task
from ssl_ft.doctor.subject import Steps
from tests.ranks import run_on_ranks

whole_answer = ranks.answer


def answer_with_own_part_only(task: Task) -> int:
    """A rank whose gather passes back its own slice, as several published implementations did."""
    dist._Gather.backward = staticmethod(lambda ctx, grad: grad[dist.rank()])
    return whole_answer(task)


def answer_with_own_statistics(task: Task) -> int:
    """A rank that normalises by its own part of the batch."""
    subject.use_global_batch_norm = lambda module: module
    return whole_answer(task)


def answer_with_an_error(task: Task) -> int:
    """A rank that breaks off."""
    subject.noise_store = lambda count: 1 / 0
    return whole_answer(task)


def on_this_rank(answer: Callable[[Task], int], task: Task) -> int:
    """The answer of a rank that has met the others already, and leaves them when the test does."""
    dist.stop = lambda: None
    return answer(task)


def ask_forked(answer: Callable[[Task], int], task: Task, *, num_ranks: int) -> None:
    """The same ranks without seconds of imports each; how they are started otherwise `test_stage.py` shows."""
    run_on_ranks(on_this_rank, answer, task, num_ranks=num_ranks)


def broken(monkeypatch: pytest.MonkeyPatch, answer: object) -> ranks.Finding:
    monkeypatch.setattr(ranks, "answer", answer)
    return ranks.check_ranks(num_ranks=2)


@pytest.mark.dist
def test_a_gather_that_does_not_sum_gradients_fails(monkeypatch):
    monkeypatch.setattr(ranks, "ask_ranks", ask_forked)
    finding = broken(monkeypatch, answer_with_own_part_only)
    assert finding.verdict == "fail"
    assert "simclr LOSS OFF" in finding.measured
    assert "masked loss to" in finding.measured, "an objective without a gather is as it was"
    assert "devices=1" in finding.advice


@pytest.mark.dist
@pytest.mark.slow
def test_batch_norm_of_ones_own_fails(monkeypatch):
    monkeypatch.setattr(ranks, "ask_ranks", ask_forked)
    finding = broken(monkeypatch, answer_with_own_statistics)
    assert finding.verdict == "fail"
    assert "simclr LOSS OFF" in finding.measured


@pytest.mark.dist
@pytest.mark.slow
def test_a_rank_that_breaks_off_tells_why(monkeypatch):
    with pytest.raises(ValueError, match=r"rank \d: ZeroDivisionError"):
        broken(monkeypatch, answer_with_an_error)


def test_one_rank_is_nothing_to_compare():
    assert ranks.check_ranks(num_ranks=1).verdict == "cannot check"


def test_a_gradient_of_half_the_length_is_named_as_such():
    one = Steps([1.0, 0.9], torch.tensor([3.0, -4.0], dtype=torch.float64))
    gap = ranks._gap("simclr", one, Steps([1.0, 0.9], one.gradient / 2))
    assert not gap.is_small
    assert "0.500 of the length" in str(gap)
    assert "cosine 1.0000" in str(gap)
    assert ranks._gap("simclr", one, one).is_small
    assert not ranks._gap("simclr", one, Steps([1.0, 0.9 + 1e-8], one.gradient)).is_small
    assert not ranks._gap("simclr", one, Steps([1.0, 0.9], one.gradient * torch.nan)).is_small
