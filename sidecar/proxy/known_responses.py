"""Responses that are recognised by their bytes: the meaning of a head is worked out once, and looked up afterwards.

Like `known_heads` for requests: takes only responses of usual kinds, and leaves all others to the parser.
"""

import re
from asyncio import AbstractEventLoop
from typing import Final

from msgspec import Struct

from sidecar.core.headers import HOP_BY_HOP, Memory
from sidecar.http.requests import CONTENT_LENGTH, HEADER_LINE
from sidecar.proxy.response_parser import MAX_HEAD_BYTES, HeaderList, UpstreamResponse, response_start

_LONGEST: Final = 256
"""Most bytes of a line that is learnt."""
_LONGEST_HEAD: Final = 1024
_MOST_HEADS: Final = 256
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_UNUSUAL_STATUSES: Final = frozenset({204, 304})
"""Statuses without a body (RFC 9110 section 6.4.1)."""
_MOST_LINES: Final = 1024
_HARMLESS: Final = frozenset(
    {
        b"accept-ranges", b"access-control-allow-origin", b"cache-control", b"connection", b"content-encoding",
        b"content-language", b"content-length", b"content-security-policy", b"content-type", b"date", b"expires",
        b"keep-alive", b"pragma", b"referrer-policy", b"server", b"strict-transport-security", b"vary",
        b"x-content-type-options", b"x-frame-options", b"x-powered-by",
    }
)  # fmt: skip
"""Headers that contain no secret, and so may stay in memory."""


class _Line(Struct, frozen=True, gc=False):
    """length: the Content-Length, or -1."""

    pair: tuple[bytes, bytes]
    lower: bytes
    passes: bool
    length: int = -1


class _Head(Struct, frozen=True, gc=False):
    """names: in lower case. length: of the body. start: as `response_start`."""

    status: int
    reason: bytes
    headers: HeaderList
    names: set[bytes]
    length: int
    start: bytes


class KnownResponses:
    """The memory of one upstream."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._status_lines: Memory[tuple[int, bytes]] = Memory(_MOST_LINES)
        self._lines: Memory[_Line] = Memory(_MOST_LINES)
        self._heads: Memory[_Head] = Memory(_MOST_HEADS)

    def read(self, data: bytes) -> UpstreamResponse | None:
        """The response to any method but HEAD, if `data` is exactly one complete response with a Content-Length."""
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= MAX_HEAD_BYTES - 4:
            return None
        text = data[:end]
        head = self._heads.young.get(text) or self._heads.recall(text) or self._head(text)
        body = data[end + 4 :]
        if head is None or len(body) != head.length:
            return None
        response = UpstreamResponse(head.status, head.reason, head.headers, head.names, self._loop)
        response.start, response.has_length, response.complete = head.start, True, True
        response.feed(body)
        return response

    def _head(self, text: bytes) -> _Head | None:
        """The head; learnt once all of its lines are."""
        first, *texts = text.split(b"\r\n")
        status = self._status_lines.young.get(first) or self._status(first)
        if status is None:
            return None
        known, length, names, headers = self._lines.young, -1, set[bytes](), list[tuple[bytes, bytes]]()
        unknown = 0
        for each in texts:
            line = known.get(each)
            if line is None:
                unknown += 1
                line = self._line(each)
            if line is None or (line.length >= 0 and length >= 0):
                return None
            length = max(length, line.length)
            if line.passes:
                headers.append(line.pair)
                names.add(line.lower)
        head = _Head(status[0], status[1], headers, names, length, response_start(*status, headers))
        if not unknown and len(text) <= _LONGEST_HEAD:
            self._heads.learn(text, head)
        return head

    def _status(self, text: bytes) -> tuple[int, bytes] | None:
        known = self._status_lines.recall(text)
        if known is None:
            found = _STATUS_LINE.fullmatch(text)
            if found is None or int(found[1]) in _UNUSUAL_STATUSES:
                return None
            known = (int(found[1]), found[2])
            if len(text) <= _LONGEST:
                self._status_lines.learn(text, known)
        return known

    def _line(self, text: bytes) -> _Line | None:
        known = self._lines.recall(text)
        if known is None:
            found = HEADER_LINE.fullmatch(text)
            # The parser keeps tabs at the end of a line.
            known = None if found is None or text.endswith(b"\t") else _line_of(found[1], found[2])
            if known is not None and known.lower in _HARMLESS and len(text) <= _LONGEST:
                self._lines.learn(text, known)
        return known


def _line_of(name: bytes, value: bytes) -> _Line | None:
    lower = name.lower()
    if lower == b"content-length":
        if CONTENT_LENGTH.fullmatch(value) is None:
            return None
        return _Line((name, b"%d" % int(value)), lower, True, int(value))
    if lower == b"connection":
        return _Line((name, value), lower, False) if value.lower() == b"keep-alive" else None
    if lower in HOP_BY_HOP:
        return _Line((name, value), lower, False) if lower == b"keep-alive" else None
    return _Line((name, value), lower, True)
