"""Checks of the machine and what is installed on it: versions, GPUs, processor, memory, limits.

Reads what Linux tells under /proc and /sys; nothing is trained and nothing written here.
"""

import os
import platform
import resource
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from ssl_ft import dist
from ssl_ft.doctor.finding import Finding
from ssl_ft.processor import BF16_FLAGS, cpu_flags, has_bf16
from ssl_ft.seeding import uniform

# Files, threads' pipes and sockets of one rank stay below this; it is also the least any system starts with.
_LEAST_OPEN_FILES = 256
# A checkpoint of a ViT-B with its optimizer and running average takes about this much.
_LEAST_FILE_BYTES = 2 * 2**30
# NCCL's buffers between two GPUs that cannot reach each other directly are tens of MB.
_SHARED_MB_PER_RANK = 32


def check_versions() -> Finding:
    """Versions are those asked for, and torchvision's operators run on this torch."""
    import torchvision
    from torchvision.ops import nms

    # What the modules say of themselves tells the build too, such as +cpu.
    torches = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    others = ", ".join(f"{name} {version(name)}" for name in ("timm", "numpy", "pillow"))
    measured = f"python {platform.python_version()}, {torches}, {others}"
    try:
        asked = requires("ssl_ft") or []
    except PackageNotFoundError:
        asked = []
    unmet = unmet_requirements(asked)
    if unmet:
        return Finding(
            "versions", "fail", f"{measured}; asked for: {', '.join(unmet)}", "pip install -U ssl_ft, or those"
        )
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [3.0, 3.0, 4.0, 4.0]])
    if nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() != [0, 2]:
        advice = "install torch and torchvision again, both in one command"
        return Finding("versions", "fail", f"{measured}; torchvision's operators give wrong results", advice)
    return Finding("versions", "pass", f"{measured}; torch and torchvision fit each other")


def unmet_requirements(asked: Sequence[str]) -> list[str]:
    """Which requirements of a package (lines as in its metadata, extras left out) are not met by what is installed."""
    unmet = []
    for line in asked:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            is_met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            is_met = False
        if not is_met:
            unmet.append(f"{requirement.name}{requirement.specifier}")
    return unmet


def check_device(name: str) -> Finding:
    """GPUs: there, seen by torch, and computing what the processor computes.

    Args:
        name: "auto", "cpu" or "cuda", the setting.
    """
    if name == "cpu":
        return Finding("device", "cannot check", "device=cpu: GPUs were not looked at")
    if not torch.cuda.is_available():
        return _no_gpu(name)
    texts, advice = [], ""
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
        is_native = has_bf16(torch.device("cuda", number))
        texts.append(
            f"{about.name}, compute capability {about.major}.{about.minor}, {free:.1f} of {total:.1f} GiB free, "
            f"bf16 {'yes' if is_native else 'no'}"
        )
        advice = advice if is_native else "use precision=float32 there: bf16 is emulated below compute capability 8.0"
        gap = _matmul_gap(torch.device("cuda", number))
        if gap > 1e-3:
            measured = f"GPU {number} ({about.name}) multiplies matrices wrongly: relative error {gap:.1e}"
            return Finding("device", "fail", measured, "check driver and memory of that GPU; leave it out until then")
    return Finding("device", "pass", f"CUDA {torch.version.cuda}: {'; '.join(texts)}", advice)


def _no_gpu(name: str) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1") and name == "auto":
        return Finding("device", "cannot check", "GPUs are hidden by CUDA_VISIBLE_DEVICES")
    cards = list(Path("/dev").glob("nvidia[0-9]*"))
    if cards or name == "cuda":
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        seen = f"{len(cards)} NVIDIA GPUs in /dev, none of them" if cards else "device=cuda, and no NVIDIA GPU is"
        measured = f"{seen} seen by torch {torch.__version__}, which is built {built}"
        advice = "compare the CUDA version `nvidia-smi` names; install the torch that fits it, or use device=cpu"
        return Finding("device", "fail", measured, advice)
    return Finding("device", "cannot check", "there is no CUDA device", "nothing, where training on the CPU is meant")


def _matmul_gap(device: torch.device) -> float:
    """Relative error of a float32 product of two [256, 256] matrices against float64."""
    left, right = (
        uniform(torch.arange(256), seed=0, purpose="doctor", view=view, columns=256).double() for view in (0, 1)
    )
    exact = left @ right
    found = (left.float().to(device) @ right.float().to(device)).double().cpu()
    return float((found - exact).abs().max() / exact.abs().max())


def check_cpu(*, num_ranks: int) -> Finding:
    """Cores this process may use against threads torch starts, and what kernels the processor allows."""
    usable, threads = usable_cores(), torch.get_num_threads()
    kernels = torch.backends.cpu.get_cpu_capability()
    bf16 = [flag for flag in BF16_FLAGS if flag in cpu_flags()]
    measured = (
        f"{usable:g} of {os.cpu_count()} cores usable, {threads} threads in torch, {kernels} kernels, "
        f"bf16 {f'in hardware ({bf16[0]})' if bf16 else 'emulated'}"
    )
    gap = _matmul_gap(torch.device("cpu"))
    if gap > 1e-4:
        advice = "install torch again; if it stays so, try ATEN_CPU_CAPABILITY=default and report it to torch"
        return Finding("cpu", "fail", f"{measured}; matrices are multiplied wrongly: relative error {gap:.1e}", advice)
    hints = []
    if threads > usable:
        hints.append(f"set threads={max(1, int(usable))}: more threads than usable cores wait for each other")
    elif num_ranks > usable:
        hints.append(f"{num_ranks} ranks share {usable:g} cores: use fewer")
    if kernels == "DEFAULT":
        hints.append("torch uses neither AVX2 nor AVX-512 here and is several times slower than it could be")
    if not bf16:
        hints.append(
            "train with precision=float32 or auto on this processor: it emulates bf16, which is several times slower"
        )
    return Finding("cpu", "pass", measured, "; ".join(hints))


def usable_cores() -> float:
    """Cores this process may use: its affinity, or the container's quota if that is smaller."""
    allowed = dist.allowed_cores()
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        return min(float(allowed), int(quota[0]) / int(quota[1]))
    old = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
    if all(part.isdecimal() for part in old):
        return min(float(allowed), int(old[0]) / int(old[1]))
    return float(allowed)


def check_memory(*, num_ranks: int, need_mb: int) -> Finding:
    """Memory that can be had against what the ranks are to need together.

    Args:
        num_ranks: ranks on this machine.
        need_mb: MiB a rank.
    """
    available = available_mb()
    if available is None:
        return Finding("memory", "cannot check", "this system does not tell how much memory is available")
    need = need_mb * num_ranks
    measured = f"{available:,.0f} MiB available, {need:,} needed ({num_ranks} ranks of memory_mb={need_mb})"
    if available < need:
        advice = (
            "use fewer ranks, a smaller batch_size or size, or data.cache=disk; `--dry-run` estimates a rank's memory"
        )
        return Finding("memory", "fail", measured, advice)
    return Finding("memory", "pass", measured)


def available_mb() -> float | None:
    """MiB a new process could have without swapping, the container's limit included; None where nothing tells."""
    told = [line.split() for line in _read("/proc/meminfo").splitlines() if line.startswith("MemAvailable:")]
    if not told:
        return None
    available = int(told[0][1]) / 2**10
    for limit_file, used_file, stat_file in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, used = (_read(f"/sys/fs/cgroup/{name}").strip() for name in (limit_file, used_file))
        if limit.isdecimal() and used.isdecimal():
            stat = dict(line.split() for line in _read(f"/sys/fs/cgroup/{stat_file}").splitlines())
            # Files kept in memory count as used, though they are given up first.
            held = int(used) - int(stat.get("inactive_file", "0"))
            available = min(available, (int(limit) - held) / 2**20)
    return max(0.0, available)


def check_limits(*, num_ranks: int, num_gpus: int) -> Finding:
    """Open files, size of a file, and the memory that processes share."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    shared = Path("/dev/shm")
    shared_mb = shutil.disk_usage(shared).free / 2**20 if shared.is_dir() else 0.0
    measured = (
        f"{_shown(files)} open files, files of {_shown(largest)} bytes, {shared_mb:,.0f} MiB shared memory in {shared}"
    )
    problems = []
    if 0 <= files < _LEAST_OPEN_FILES:
        problems.append("raise the limit on open files: `ulimit -n 4096`")
    if 0 <= largest < _LEAST_FILE_BYTES:
        problems.append("raise the limit on the size of files: `ulimit -f unlimited`")
    is_short = shared_mb < _SHARED_MB_PER_RANK * num_ranks
    advice = (
        f"give the container more shared memory (docker: --shm-size=1g): GPU ranks need {_SHARED_MB_PER_RANK} MiB each"
    )
    if is_short and num_gpus > 1:
        problems.append(advice)
    if problems:
        return Finding("limits", "fail", measured, "; ".join(problems))
    return Finding("limits", "pass", measured, advice if is_short else "")


def _shown(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
