"""The access log: one line a request, gathered on the request's path and written off it."""

import os
import select
from collections.abc import Callable

from sidecar.observe.lines import Access as Access
from sidecar.observe.lines import JsonLines, LineFormat
from sidecar.telemetry.batching import Batches
from sidecar.telemetry.redaction import Redaction

_LINES_AT_ONCE = 256
"""Encoded between two turns of the loop: about a millisecond."""


class AccessLog(Batches[Access, bytes]):
    """Lines waiting to be written by `write`, which may block; see Batches.

    line: the format. sample: asked of each request that was neither refused nor failed whether it is to be written;
    None for all of them.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        *,
        line: LineFormat | None = None,
        sample: Callable[[], bool] | None = None,
        max_lines: int = 100_000,
        max_chars: int = 32 * 1024 * 1024,
    ) -> None:
        line = line or JsonLines(Redaction())
        super().__init__(
            write,
            prepare=lambda batch: b"\n".join([*[line(access) for access in batch], b""]),
            weigh=_chars,
            at_once=_LINES_AT_ONCE,
            max_items=max_lines,
            max_weight=max_chars,
        )
        self.tells_client = line.tells_client
        """Whether an Access is to hold referer and user agent."""
        self._sample = sample

    def wants(self, access: Access) -> bool:
        """Whether it is to be recorded: every refusal and failure is."""
        return self._sample is None or access.status >= 400 or access.reason is not None or self._sample()


def descriptor_writer(descriptor: int) -> Callable[[bytes], None]:
    """A `write` to an open file descriptor, without a buffer that would be flushed, and stuck, at exit."""

    def write(batch: bytes) -> None:
        rest = memoryview(batch)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                select.select([], [descriptor], [])

    return write


def _chars(access: Access) -> int:
    """What a client can make long."""
    return len(access.target) + len(access.request_id) + len(access.method) + len(access.referer) + len(access.agent)
