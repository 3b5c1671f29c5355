"""What the C library's allocator is told before the sidecar serves."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""
KEPT_BYTES = 16 * 1024 * 1024
LARGEST_KEPT_BYTES = 1024 * 1024


def keep_freed_memory() -> None:
    """Keep up to KEPT_BYTES that are free, where the C library is glibc.

    By default it gives them back at once, and the kernel clears every page of them anew for the next answer of 64 KiB:
    a third of what such an answer costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
