"""What the C library and the interpreter are told before the sidecar serves."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""
KEPT_BYTES = 16 * 1024 * 1024
LARGEST_KEPT_BYTES = 1024 * 1024
SWITCH_SECONDS = 0.0005


def keep_freed_memory() -> None:
    """Keep up to KEPT_BYTES that are free, where the C library is glibc.

    By default it gives them back at once, and the kernel clears every page of them anew for the next answer of 64 KiB:
    a third of what such an answer costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def let_requests_go_first() -> None:
    """Have threads that work beside the loop give way within SWITCH_SECONDS.

    By default the loop waits 5 ms for the interpreter each time that one of them computes, and all requests with it.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
