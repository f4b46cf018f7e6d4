"""Asking several ranks at once: start them here, or be one of those `torchrun` started; none waits for ever.

What they are asked is in `ranks.py` and `network.py`. Light to import, for every rank started does so.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ssl_ft import dist
from ssl_ft.doctor.finding import sentence_of
from ssl_ft.errors import UserError
from ssl_ft.launch import run_ranks

# Seconds a rank may take to meet the others and answer; two slow cores take 6, and ten times as long where others are
# at work on them.
_PATIENCE = 180.0
_NO_ANSWER = 3
ADVICE = (
    "look at the network between the ranks: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface to use (lo on "
    "one machine), and a firewall must let the ranks through"
)


@dataclass(frozen=True)
class Task:
    """What each rank is told.

    Attributes:
        path: file in which rank 0 leaves the answer.
        device_type: "cpu" for gloo, "cuda" for NCCL.
        batch_size: images over all ranks, where there are images.
    """

    path: str
    device_type: str
    batch_size: int = 0


def ask_ranks(answer: Callable[[Task], int], task: Task, *, num_ranks: int) -> None:
    """Have `answer(task)` run on new processes; the answer is then in `task.path`.

    Raises:
        UserError: a rank told why it could not, or gave no answer in time.
    """
    code = run_ranks(answer, task, num_ranks=num_ranks)
    if code == _NO_ANSWER:
        raise UserError(f"{num_ranks} ranks on this machine gave no answer within {_PATIENCE:.0f} s")
    if code:
        raise UserError(f"a rank on this machine ended with exit code {code}")


@contextmanager
def joined(device_type: str) -> Iterator[torch.device]:
    """A rank's device while it is in the process group; its errors leave as a sentence, its silence ends it.

    Raises:
        UserError: whatever went wrong, in one sentence.
    """
    clock = threading.Timer(_PATIENCE, _give_up)
    clock.daemon = True
    clock.start()
    try:
        yield _join(device_type)
        dist.barrier()
        dist.stop()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"rank {os.environ.get('RANK', '0')}: {sentence_of(error)}") from error
    finally:
        clock.cancel()


def _join(device_type: str) -> torch.device:
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", dist.local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.use_threads(None)
    dist.start_from_environment(device_type)
    return device


def _give_up() -> None:
    print(f"ssl-ft: a rank waited {_PATIENCE:.0f} s for the others and gave up; {ADVICE}", file=sys.stderr, flush=True)
    os._exit(_NO_ANSWER)
