"""What the C library does with memory that a step has freed."""

from __future__ import annotations

import ctypes
import platform

# Names of malloc.h, and the largest values that it takes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST, _LARGEST_FROM_HEAP, _PAD = 2**31 - 1, 32 * 2**20, 64 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next one; with glibc only, elsewhere nothing.

    Otherwise glibc gives blocks of some megabytes back to the system at once, which has to clear them for the next
    step: a quarter of the processor time of a training step of the small network. At most 2 GB stay unused so.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    mallopt(_M_TOP_PAD, _PAD)
