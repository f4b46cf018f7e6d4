"""NT-Xent forward and backward against lightly's: time, and memory in a process of its own; on a GPU the fused kernel
against torch's operations. Values are compared in tests; here only their cost is.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ssl_ft.bench.memory import cost_in_own_process
from ssl_ft.bench.peers import lightly_nt_xent
from ssl_ft.bench.timing import CannotMeasure, Row, Work, at_least, at_most, compare, stopwatch_for, time_in_turns
from ssl_ft.objectives.nt_xent import nt_xent

_NUM_DIMS = 128
_TEMPERATURE = 0.2
_WARM_UP = 256
_WARM_UP_TURNS = 2
# Images a batch -> how many times faster than lightly's loss it should be.
_SPEED_UPS = {1024: 2.0, 4096: 4.0}

Loss = Callable[[Tensor, Tensor], Tensor]


def measure(*, rounds: int, sizes: Sequence[int] = (1024, 4096), large: int = 32768) -> Iterator[Row]:
    """Rows of time at each of `sizes`, of memory at the last of them, and of our memory alone at `large` images.

    Raises:
        CannotMeasure: lightly is not installed, or memory cannot be read here.
    """
    for count in sizes:
        # Short calls are repeated more often, as they feel the machine's other work more.
        turns = rounds * max(1, 4096 // count)
        seconds = time_in_turns([prepare_ours(count), prepare_peer(count)], rounds=turns)
        ours, peer = ([1000 * value for value in column] for column in seconds)
        name = f"NT-Xent forward and backward, N={count}: times faster than lightly's"
        bar = at_least(_SPEED_UPS[count]) if count in _SPEED_UPS else None
        note = f"float32, {_NUM_DIMS} dimensions, threads: {torch.get_num_threads()}"
        yield compare(name, ours, peer, unit="ms", is_speed_up=True, bar=bar, note=note)
    cost = partial(cost_in_own_process, warm_up_size=_WARM_UP, num_threads=torch.get_num_threads())
    mine, theirs = cost(prepare_ours, sizes[-1]), cost(prepare_peer, sizes[-1])
    name = f"NT-Xent extra memory, N={sizes[-1]}: share of lightly's"
    note = "peak of a fresh process less what it held before the call"
    yield compare(name, [mine.extra_mb], [theirs.extra_mb], unit="MB", bar=at_most(0.1), note=note)
    most = cost(prepare_ours, large)
    note += f"; forward and backward took {most.seconds:.1f} s"
    name = f"NT-Xent extra memory, N={large}"
    yield Row(name, most.extra_mb, None, "MB", note=note, bar=at_most(1000, of="ours"))


def prepare_ours(count: int) -> Work:
    """Forward and backward of our loss on `count` images."""
    return _step(partial(nt_xent, temperature=_TEMPERATURE), count)


def prepare_peer(count: int) -> Work:
    """The same of lightly's.

    Raises:
        CannotMeasure: lightly is not installed.
    """
    return _step(lightly_nt_xent(_TEMPERATURE), count)


def time_kernel(count: int, dtype: torch.dtype, device: torch.device, *, rounds: int) -> Row:
    """A row of the fused kernel beside torch's operations, whichever of them `nt_xent` would choose.

    Raises:
        CannotMeasure: the kernel does not run here.
    """
    ways = [partial(nt_xent, temperature=_TEMPERATURE, fused=fused) for fused in (True, False)]
    works = [_step(way, count, dtype, device) for way in ways]
    try:
        works[0]()
    except Exception as error:  # compilers raise what they like
        raise CannotMeasure(f"the fused kernel of NT-Xent does not run here: {type(error).__name__}") from error
    seconds = time_in_turns(works, rounds=rounds, warm_up=_WARM_UP_TURNS, stopwatch=stopwatch_for(device))
    ours, peer = ([1000 * value for value in column] for column in seconds)
    name = f"NT-Xent forward and backward, 2N={2 * count}, {str(dtype).removeprefix('torch.')}"
    note = f"{_NUM_DIMS} dimensions; the faster of both is taken by itself"
    return compare(
        f"{name}: times the fused kernel is faster than torch", ours, peer, unit="ms", is_speed_up=True, note=note
    )


def _step(loss: Loss, count: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Work:
    generator = torch.Generator().manual_seed(count)
    first, second = (
        torch.randn(count, _NUM_DIMS, generator=generator).to(device, dtype).requires_grad_() for _ in range(2)
    )

    def step() -> Tensor:
        first.grad = second.grad = None
        total = loss(first, second)
        total.backward()
        return total.detach()

    return step
