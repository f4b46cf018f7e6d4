"""Freed memory, handed back to the system: what allocators keep for themselves counts as this process's.

How much a process held at most is measured in `peak.py`.
"""

import contextlib
import ctypes
import sys


def give_back() -> None:
    """Give the system what was freed by the C library's allocator and by Arrow's; does nothing where they cannot.

    To be called after work that takes much and frees it: reading a table, decoding a set, judging an encoder. The pages
    would be used again, but by blocks that fit between what is still in use, so a long run would go on growing.
    """
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
