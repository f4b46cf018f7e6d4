"""Which way a loss is computed: the faster one, the same on all ranks; one that fails or errs is left."""

from dataclasses import dataclass

import pytest
import torch

from ssl_ft.objectives import contrast_choice
from ssl_ft.objectives.contrast_choice import Case, takes_kernel
from tests.ranks import run_on_ranks

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(contrast_choice, "_answers", {})
    monkeypatch.setattr(contrast_choice, "_told", set())


def case(**changed):
    fields = {"num_rows": 8192, "num_columns": 8192, "num_dims": 128, "dtype": torch.bfloat16, "device": GPU}
    return Case(**{**fields, **changed})


@dataclass(frozen=True)
class Work:
    """Gives loss and gradient, and says itself how long that takes: no clock of a busy machine has a say."""

    seconds: float
    loss: float
    gradient: tuple[float, float]

    def __call__(self):
        return torch.tensor(self.loss), torch.tensor(self.gradient)


def work(seconds=0.0, *, loss=2.0, gradient=(0.3, -0.4)):
    return Work(seconds, loss, gradient)


def told_seconds(attempt):
    attempt()
    return attempt.seconds


def test_only_gpus_large_sizes_and_known_types_are_tried():
    assert case().is_eligible
    assert case(dtype=torch.float32).is_eligible
    for changed in ({"device": torch.device("cpu")}, {"dtype": torch.float64}, {"num_rows": 256, "num_columns": 256}):
        assert not case(**changed).is_eligible


def test_nothing_is_left_to_the_clock_where_torch_is_deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert not case().is_eligible
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(("plain", "fused", "answer"), [(0.02, 0.002, True), (0.002, 0.02, False)])
def test_the_faster_way_is_taken_and_told_once(plain, fused, answer, capsys):
    for _ in range(2):
        assert takes_kernel(case(), lambda: (work(plain), work(fused)), stopwatch=told_seconds) is answer
    told = capsys.readouterr().err
    assert told.count("8192 x 8192 logits from 128 dimensions in bfloat16: the fused kernel is") == 1
    assert told.strip().endswith("and is used" if answer else "and is not used")


def test_a_kernel_hardly_faster_is_not_taken():
    seconds = iter([1.05, 1.0] * 5)
    assert not takes_kernel(case(), lambda: (work(), work()), stopwatch=lambda attempt: next(seconds))


def test_a_case_is_timed_once():
    calls = []
    for _ in range(3):
        takes_kernel(case(), lambda: (work(), work()), stopwatch=lambda attempt: calls.append(1) or 1.0)
    assert len(calls) == 2 * contrast_choice._REPEATS


def test_a_failing_compiler_is_told_once_and_left(capsys):
    def fused():
        raise RuntimeError("out of resource: shared memory\nand a page of code")

    for num_dims in (128, 256):
        assert not takes_kernel(case(num_dims=num_dims), lambda: (work(), fused), stopwatch=told_seconds)
    line = "the contrastive loss runs without its fused kernel (RuntimeError: out of resource: shared memory)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"loss": 2.1}, "its loss is 5.0% away"),
        ({"loss": float("nan")}, "its loss is nan"),
        ({"gradient": (0.3, -0.5)}, "its gradient is 20.0% away"),
    ],
)
def test_a_kernel_that_errs_is_left(changed, match, capsys):
    assert not takes_kernel(case(), lambda: (work(0.02), work(0.01, **changed)), stopwatch=told_seconds)
    assert match in capsys.readouterr().err


def answer_here(speed_ups, failing):
    from ssl_ft import dist

    seconds = iter([speed_ups[dist.rank()], 1.0] * 5)
    gradient = (float("nan"), 0.0) if dist.rank() == failing else (0.3, -0.4)
    return takes_kernel(case(), lambda: (work(), work(gradient=gradient)), stopwatch=lambda attempt: next(seconds))


@pytest.mark.dist
@pytest.mark.parametrize(
    ("speed_ups", "failing", "answer"), [((2.0, 0.5), None, True), ((0.5, 2.0), None, False), ((2.0, 2.0), 1, False)]
)
def test_ranks_agree(speed_ups, failing, answer):
    """Rank 0's clock decides; one rank whose kernel fails is enough against it."""
    assert run_on_ranks(answer_here, speed_ups, failing, num_ranks=2) == [answer, answer]
