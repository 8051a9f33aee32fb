"""What a process holds alone, and giving back what the C library only keeps for later."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from overnight import cgroup_memory


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process (RssAnon); 0 where the kernel does not say."""
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    return (cgroup_memory.field(status, b"RssAnon:") or 0) * 1024


def trim() -> None:
    """Give freed heap memory back to the kernel, where the C library can."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


def give_back() -> None:
    """Collect what nobody refers to, then trim."""
    gc.collect()
    trim()
