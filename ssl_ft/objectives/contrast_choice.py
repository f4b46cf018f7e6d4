"""Which of two ways to compute the same loss is faster on this GPU: tried once a size, the same answer on all ranks.

The two ways are in `nt_xent.py` and `contrast_kernel.py`; this file knows neither.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_ft import dist
from ssl_ft.runlog import say

Work = Callable[[], tuple[Tensor, Tensor]]
Stopwatch = Callable[[Work], float]

# Below so many logits the loss takes microseconds beside a step of milliseconds, whichever way.
_FEWEST_LOGITS = 2048 * 2048
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REPEATS = 5
# A kernel that is hardly faster is not taken: noise would choose, and roundings differ from run to run.
_MARGIN = 1.1
# Far above roundings, tf32 where a user allows it included; far below what a mistake in a kernel does.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Case:
    """What the answer may depend on; the same on every rank but for the device's number."""

    num_rows: int
    num_columns: int
    num_dims: int
    dtype: torch.dtype
    device: torch.device

    @property
    def is_eligible(self) -> bool:
        """Whether a kernel is worth a try. Where torch is to be deterministic nothing is left to a clock."""
        return (
            self.device.type == "cuda"
            and self.dtype in _DTYPES
            and self.num_rows * self.num_columns >= _FEWEST_LOGITS
            and not torch.are_deterministic_algorithms_enabled()
        )

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.num_rows} x {self.num_columns} logits from {self.num_dims} dimensions in {dtype}"


_answers: dict[Case, bool] = {}
_told: set[str] = set()


def takes_kernel(case: Case, prepare: Callable[[], tuple[Work, Work]], *, stopwatch: Stopwatch | None = None) -> bool:
    """Whether to compute the case by the kernel; every rank must ask, and all get the same answer.

    The first time in a process both ways run, a few times each. A kernel that fails on any rank, or differs there from
    torch, is not taken, and one line says why.

    Args:
        case: what is computed.
        prepare: makes two works that give loss and gradient of the case, by torch's own operations and by the kernel.
        stopwatch: seconds of one call; by default in the GPU's own time.
    """
    if case not in _answers:
        _answers[case] = _decide(case, prepare, stopwatch or _event_seconds)
    return _answers[case]


def _decide(case: Case, prepare: Callable[[], tuple[Work, Work]], stopwatch: Stopwatch) -> bool:
    problem, speed_up = "", 0.0
    try:
        plain, fused = prepare()
        problem = _difference(plain(), fused())
        speed_up = _speed_up(plain, fused, stopwatch)
    except Exception as error:  # compilers raise what they like; without them the loss is the same, only slower
        problem = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
    if dist.any_rank(bool(problem)):
        _say_once(f"the contrastive loss runs without its fused kernel ({problem or 'it failed on another rank'})")
        return False
    # Clocks differ from rank to rank, and with their answers the roundings would.
    speed_up = float(dist.broadcast_object(speed_up))
    is_faster = speed_up >= _MARGIN
    use = "used" if is_faster else "not used"
    _say_once(f"contrastive loss, {case}: the fused kernel is {speed_up:.2f} times as fast as torch and is {use}")
    return is_faster


def _difference(plain: tuple[Tensor, Tensor], fused: tuple[Tensor, Tensor]) -> str:
    """What is wrong with the kernel's loss or gradient, if anything."""
    for name, ours, theirs in zip(("loss", "gradient"), fused, plain, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        if not error <= _TOLERANCE:  # NaN as well
            return f"its {name} is {error:.1%} away from torch's"
    return ""


def _speed_up(plain: Work, fused: Work, stopwatch: Stopwatch) -> float:
    """How many times faster the kernel is by the fastest turn of each; both have run before."""
    turns = [(stopwatch(plain), stopwatch(fused)) for _ in range(_REPEATS)]
    return min(turn[0] for turn in turns) / min(turn[1] for turn in turns)


def _event_seconds(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _say_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        say(sentence)
