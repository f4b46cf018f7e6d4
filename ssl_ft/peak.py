"""The most memory a piece of work had its process hold, measured in that process.

Work measured in a process of its own, for the bench, is in `bench/memory.py`.
"""

import contextlib
import re
from pathlib import Path

import torch

from ssl_ft.runlog import peak_memory_mb

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident size to the present one


class PeakMemory:
    """Measures from its creation on, and starts the system's count anew; one at a time.

    Where the system cannot start it anew, what came before in this process counts too.

    Args:
        device: whose memory: a GPU's own, or for the CPU the resident memory of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)

    def mb(self) -> float:
        """The peak so far in MiB."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        with contextlib.suppress(OSError):
            match = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
            if match is not None:
                return round(int(match[1]) / 2**10, 1)
        return round(peak_memory_mb(), 1)
