"""W3C Trace Context: the trace that a request belongs to."""

import re
from collections.abc import Callable
from typing import Final

from sidecar.core.model import Headers, RequestHead
from sidecar.core.observer import SAMPLED, Trace
from sidecar.core.upstream_request import TRACEPARENT, TRACESTATE

_RANDOM: Final = 0x02
"""The trace id is random (Trace Context level 2); handed on as it came."""
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_WHOLE: Final = 1 << 64


class Contexts:
    """Takes up the callers' traces, or begins new ones.

    share: of the traces that begin here, so many are sampled, 0 to 1. random_bytes: so many of them.
    believes: whether the traceparent of a peer is taken up; one that is not, and one that cannot be read, is replaced,
    and its tracestate dropped.
    """

    def __init__(self, *, share: float, random_bytes: Callable[[int], bytes], believes: Callable[[str], bool]) -> None:
        self._bound, self._random_bytes, self._believes = int(share * _WHOLE), random_bytes, believes

    def begin(self, head: RequestHead) -> Trace:
        """The parent's decision on sampling stands; without a parent, the trace id decides."""
        digits = self._random_bytes(32).hex()
        span_id, client_span_id = _not_zero(digits[:16]), _not_zero(digits[16:32])
        parent = _parent(head.headers) if self._believes(head.peer) else None
        if parent is None:
            trace_id = digits[32:]
            flags = _RANDOM | (SAMPLED if int(trace_id[16:], 16) < self._bound else 0)
            return Trace(trace_id=_not_zero(trace_id), span_id=span_id, client_span_id=client_span_id, flags=flags)
        return Trace(
            trace_id=parent[2].decode(),
            parent_id=parent[3].decode(),
            span_id=span_id,
            client_span_id=client_span_id,
            flags=int(parent[4], 16) & (SAMPLED | _RANDOM),
            state=_state(head.headers),
        )


def _parent(headers: Headers) -> re.Match[bytes] | None:
    """Of exactly one traceparent that is well-formed: of version 00 to the letter, of a later one as far as known."""
    values = [value for name, value in headers if name.lower() == TRACEPARENT]
    found = _PARENT.fullmatch(values[0]) if len(values) == 1 else None
    return None if found is None or (found[1] == b"00" and found[5] is not None) else found


def _state(headers: Headers) -> str:
    lines = [value for name, value in headers if name.lower() == TRACESTATE]
    return b",".join(lines).decode("latin-1") if lines else ""


def _not_zero(digits: str) -> str:
    """An id of nothing but zeros is none."""
    return digits if digits.strip("0") else f"{digits[:-1]}1"
