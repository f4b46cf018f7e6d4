"""Every check by name, and going through them: an error becomes a finding; under `torchrun` all ranks are heard.

Imports of torch come late, check by check, so that an installation that cannot import it is told in a sentence.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_ft.doctor.finding import Finding, sentence_of
from ssl_ft.errors import UserError

if TYPE_CHECKING:
    import torch

    from ssl_ft.data.source import Source
    from ssl_ft.doctor.subject import Steps

_REINSTALL = "install ssl_ft and what it needs again"


@dataclass(frozen=True)
class Circumstances:
    """What the checks are to look at.

    Attributes:
        device: "auto", "cpu" or "cuda".
        num_ranks: ranks to start, where `torchrun` has not started them.
        memory_mb: MiB each is to have.
        folder: where runs will be written.
        open_source: opens the user's images; None where none were named.
    """

    device: str
    num_ranks: int
    memory_mb: int
    folder: Path
    open_source: "Callable[[], Source] | None" = None


@dataclass(frozen=True)
class Check:
    """A check, and what to do where it breaks off with an error."""

    look: Callable[[Circumstances], Finding]
    advice: str


def _versions(about: Circumstances) -> Finding:
    from ssl_ft.doctor.machine import check_versions

    return check_versions()


def _device(about: Circumstances) -> Finding:
    from ssl_ft.doctor.machine import check_device

    return check_device(about.device)


def _cpu(about: Circumstances) -> Finding:
    from ssl_ft.doctor.machine import check_cpu

    return check_cpu(num_ranks=_ranks_here(about))


def _memory(about: Circumstances) -> Finding:
    from ssl_ft.doctor.machine import check_memory

    return check_memory(num_ranks=_ranks_here(about), need_mb=about.memory_mb)


def _limits(about: Circumstances) -> Finding:
    import torch

    from ssl_ft.doctor.machine import check_limits

    return check_limits(num_ranks=_ranks_here(about), num_gpus=torch.cuda.device_count())


def _disk(about: Circumstances) -> Finding:
    from ssl_ft.doctor.disk import check_disk

    return check_disk(about.folder)


def _decoders(about: Circumstances) -> Finding:
    from ssl_ft.doctor.images import check_decoders

    return check_decoders()


def _data(about: Circumstances) -> Finding:
    from ssl_ft.doctor.images import check_source

    return check_source(about.open_source)


def _views(about: Circumstances) -> Finding:
    from ssl_ft.doctor.views import check_views

    return check_views(_torch_device(about))


def _precision(about: Circumstances) -> Finding:
    from ssl_ft.doctor.precision import check_precision

    return check_precision(_torch_device(about))


def _resume(about: Circumstances) -> Finding:
    from ssl_ft.doctor.resume import check_resume

    return check_resume()


def _ranks(about: Circumstances) -> Finding:
    from ssl_ft.doctor.ranks import check_ranks

    return check_ranks(num_ranks=about.num_ranks)


def _network(about: Circumstances) -> Finding:
    from ssl_ft.doctor.network import check_network

    return check_network(num_ranks=about.num_ranks)


# In the order of the table: what others stand on comes first.
CHECKS: dict[str, Check] = {
    "versions": Check(_versions, _REINSTALL),
    "device": Check(_device, "run `nvidia-smi`; update driver or torch until they fit, or use device=cpu"),
    "cpu": Check(_cpu, _REINSTALL),
    "memory": Check(_memory, "look at what limits this system's memory"),
    "limits": Check(_limits, "look at `ulimit -a`"),
    "disk": Check(_disk, "name a place that can be written with folder= here and out= later"),
    "decoders": Check(_decoders, "install Pillow again: pip install --force-reinstall pillow"),
    "data": Check(_data, "mend what the sentence names; `ssl-ft index` looks at all of a source"),
    "views": Check(_views, _REINSTALL),
    "precision": Check(_precision, "train with precision=float32 on this device"),
    "resume": Check(_resume, _REINSTALL),
    "ranks": Check(_ranks, "use devices=1 until it passes; GLOO_SOCKET_IFNAME=lo helps where ranks do not meet"),
    "network": Check(_network, "use devices=1 until it passes; GLOO_SOCKET_IFNAME=lo helps where ranks do not meet"),
}


def torch_problem() -> Finding | None:
    """A finding where torch or torchvision cannot even be imported, which all other checks need."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401  # timm needs it, and one built for another torch fails here
    except Exception as error:
        measured = f"torch and torchvision cannot be imported: {sentence_of(error)}"
        return Finding("versions", "fail", measured, "install both in one command: pip install -U torch torchvision")
    return None


def examine(names: Sequence[str], about: Circumstances, *, on_done: Callable[[], None]) -> list[Finding]:
    """The findings of the checks named, in order.

    Args:
        names: keys of `CHECKS`.
        about: what to look at.
        on_done: called after each check.
    """
    findings = []
    for name in names:
        findings.append(_look(name, partial(CHECKS[name].look, about)))
        on_done()
    return findings


def _look(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:
        measured = str(error) if isinstance(error, UserError) else sentence_of(error)
        return Finding(name, "fail", measured, CHECKS[name].advice)


def examine_launched(names: Sequence[str], about: Circumstances) -> list[Finding]:
    """The findings of all ranks that `torchrun` started, on each of them.

    Each rank looks at its own machine alone; then they join, tell each other, and do what takes several.

    Raises:
        UserError: the ranks do not meet, or one of them broke off.
    """
    from ssl_ft.doctor.network import judge_traffic, measure_traffic
    from ssl_ft.doctor.ranks import check_launched_ranks, launched_batch_size, steps_of_all
    from ssl_ft.doctor.spawn import joined

    alone: dict[str, Steps] = {}

    def compute_alone() -> Finding:
        alone.update(steps_of_all(_torch_device(about), batch_size=launched_batch_size()))
        return Finding("ranks", "pass", "computed on one process")

    found = {
        name: _look(name, compute_alone if name == "ranks" else partial(CHECKS[name].look, about))
        for name in names
        if name != "network"
    }
    with joined(_torch_device(about).type) as device:
        found = {name: _worst(told) for name, told in _told_by_all(found).items()}
        if "ranks" in names and found["ranks"].verdict == "pass":
            found["ranks"] = _look("ranks", lambda: check_launched_ranks(alone, device))
        if "network" in names:
            found["network"] = _look("network", lambda: judge_traffic(measure_traffic(device)))
    return [found[name] for name in names]


def _told_by_all(found: dict[str, Finding]) -> dict[str, list[Finding]]:
    """Every rank's findings by name, in rank order."""
    import torch.distributed

    ranks: list[dict[str, Finding]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, found)
    return {name: [each[name] for each in ranks] for name in found}


def _worst(told: Sequence[Finding]) -> Finding:
    """The first failure of any rank, named; a difference of versions is one; else rank 0's finding."""
    for rank, finding in enumerate(told):
        if finding.verdict == "fail":
            return replace(finding, measured=f"rank {rank}: {finding.measured}")
        if finding.name == "versions" and finding.measured != told[0].measured:
            measured = f"rank 0 has {told[0].measured}; rank {rank} has {finding.measured}"
            return Finding("versions", "fail", measured, "install the same versions on every machine")
    return told[0]


def _torch_device(about: Circumstances) -> "torch.device":
    import torch

    from ssl_ft import dist

    if about.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", dist.local_rank() % torch.cuda.device_count())


def _ranks_here(about: Circumstances) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", about.num_ranks))
