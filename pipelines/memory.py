"""What the C library does with memory that NumPy gives back."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa

# Names of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_KEPT_BYTES = 32 << 20  # the most that glibc takes
_KEPT_AT_MOST_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Lets the process use freed arrays again.

    By default every array over 128 KiB is mapped afresh and unmapped when it goes, and clearing its pages in the kernel
    takes longer than what NumPy does with them. All threads share one arena: what one has let go another one can use,
    and few large arrays do not make them wait for each other. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_AT_MOST_BYTES)
        mallopt(_M_ARENA_MAX, 1)
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own pool gives its pages back as early
