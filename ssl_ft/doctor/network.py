"""The check of what lies between the ranks: an all_reduce of 64 MiB gives the right sum, how fast, after what delay.

Under `torchrun` between the ranks that were started, else between new gloo ranks on this machine.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed

from ssl_ft import dist
from ssl_ft.doctor.finding import Finding
from ssl_ft.doctor.spawn import ADVICE, Task, ask_ranks, joined

_MIB = 64
_REPEATS, _PINGS = 3, 50
# Gradients of a ResNet-18 in float32: what a step of the default pretraining sends.
_GRADIENT_MB = 45
# Past this share of a second a step, the ranks mostly wait for each other.
_SLOW_SECONDS = 0.5


@dataclass(frozen=True)
class Traffic:
    """What was measured.

    Attributes:
        backend: "gloo" or "nccl".
        num_ranks: ranks that took part.
        num_nodes: machines they are on.
        is_right: every element of every sum was right.
        mb_per_s: 64 MiB over the seconds an all_reduce of them takes, median.
        latency_ms: an all_reduce of one number, median.
    """

    backend: str
    num_ranks: int
    num_nodes: int
    is_right: bool
    mb_per_s: float
    latency_ms: float


def check_network(*, num_ranks: int) -> Finding:
    """Start gloo ranks on this machine and measure between them."""
    if num_ranks < 2:
        return Finding("network", "cannot check", "ranks=1: there is nothing between", "give ranks=2")
    with tempfile.TemporaryDirectory() as folder:
        task = Task(str(Path(folder) / "traffic.json"), "cpu")
        ask_ranks(answer, task, num_ranks=num_ranks)
        traffic = Traffic(**json.loads(Path(task.path).read_text(encoding="utf-8")))
    return judge_traffic(traffic)


def answer(task: Task) -> int:
    """One rank's part; rank 0 leaves what it measured in the task's file."""
    with joined(task.device_type) as device:
        traffic = measure_traffic(device)
        if dist.is_main():
            Path(task.path).write_text(json.dumps(asdict(traffic)), encoding="utf-8")
    return 0


def measure_traffic(device: torch.device) -> Traffic:
    """Measure in this process group; every rank must call it."""
    world = dist.world_size()
    wanted = world * (world + 1) / 2
    values = torch.empty(_MIB * 2**18, device=device)
    seconds, is_right = [], True
    for _ in range(_REPEATS + 1):  # the first one opens the connections
        values.fill_(dist.rank() + 1)
        seconds.append(_timed_sum(values))
        is_right &= bool((values == wanted).all())
    one = torch.zeros(1, device=device)
    pings = sorted(_timed_sum(one) for _ in range(_PINGS))
    median = sorted(seconds[1:])[_REPEATS // 2]
    return Traffic(
        backend=torch.distributed.get_backend(),
        num_ranks=world,
        num_nodes=max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        is_right=not dist.any_rank(not is_right),
        mb_per_s=values.numel() * 4 / 1e6 / median,
        latency_ms=1000 * pings[_PINGS // 2],
    )


def _timed_sum(values: torch.Tensor) -> float:
    """Seconds of an all_reduce, from when all ranks are ready for it."""
    dist.barrier()
    if values.is_cuda:
        torch.cuda.synchronize(values.device)
    start = time.monotonic()
    torch.distributed.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize(values.device)
    return time.monotonic() - start


def judge_traffic(traffic: Traffic) -> Finding:
    """Wrong sums fail; slow ones are told with what they cost, for no promise depends on speed."""
    seconds = _GRADIENT_MB / traffic.mb_per_s
    measured = (
        f"{traffic.backend}, {traffic.num_ranks} ranks on {traffic.num_nodes} machine{'s' * (traffic.num_nodes > 1)}: "
        f"all_reduce of {_MIB} MiB at {traffic.mb_per_s:,.0f} MB/s, {traffic.latency_ms:.2f} ms for one number; the "
        f"gradients of a ResNet-18 ({_GRADIENT_MB} MB) take {seconds:.3f} s a step"
    )
    if not traffic.is_right:
        return Finding("network", "fail", f"{measured}; THE SUMS ARE WRONG", f"do not train on these ranks; {ADVICE}")
    return Finding(
        "network", "pass", measured, f"slow: use fewer ranks, or {ADVICE}" if seconds > _SLOW_SECONDS else ""
    )
