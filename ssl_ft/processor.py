"""What a device multiplies in hardware, by what it says of itself; nothing is timed here."""

from pathlib import Path
from typing import Literal

import torch

# In Linux's names: Intel's tiles, AVX-512 of either maker, and ARM.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
# NVIDIA's Ampere; older ones emulate bf16.
_BF16_CAPABILITY = (8, 0)


def cpu_flags() -> set[str]:
    """What the processor says it can do, in Linux's names; empty where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()[2:]}


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; not where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    return device.type == "cpu" and not cpu_flags().isdisjoint(BF16_FLAGS)


def faster_precision(device: torch.device) -> Literal["float32", "bf16"]:
    """bf16 where hardware multiplies it, else float32."""
    return "bf16" if has_bf16(device) else "float32"
