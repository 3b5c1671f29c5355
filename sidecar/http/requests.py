"""The requests of one connection: where each begins and ends, before aiohttp parses it.

The check of a head is stricter than aiohttp's parser, so that both agree where a request ends: lines end with CR LF, no
line is folded or holds control characters, and there is one framing header at most (RFC 9112 §2.2, §5, §6.3).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from sidecar.core.errors import Reason

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_HEAD: Final = re.compile(
    rb"(%b++) [\x21-\x7e\x80-\xff]++ HTTP/1\.[01]\r\n" % _TOKEN
    + rb"(?:%b++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n" % _TOKEN
)
_BEGINNING: Final = re.compile(rb"%b{1,32}(?: |\Z)" % _TOKEN)
"""Of an incomplete head: a method, and not a handshake of TLS or another protocol."""
_BEGINNING_BYTES: Final = 64
_BROKEN_LINE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_FRAMING: Final = re.compile(rb"\n(content-length|transfer-encoding|upgrade):[ \t]*+([^\r]*+)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_END: Final = b"\r\n\r\n"


class MalformedHead(Exception):
    """The bytes are not the head of a request that the server accepts."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """The largest head that is accepted. Bytes include the name of a header, but not the CR LF of a line."""

    request_line_bytes: int = 8190
    header_bytes: int = 8190
    headers: int = 128
    head_bytes: int = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How the message of a head ends. body_bytes: None for a chunked body."""

    body_bytes: int | None
    is_last: bool
    """Whether no further request may follow on the connection."""


class Phase(Enum):
    """What a connection waits for."""

    IDLE = auto()
    """The first byte of another request."""
    HEAD = auto()
    """The rest of a head."""
    BODY = auto()
    """The rest of a body."""
    ANSWERED_BODY = auto()
    """The rest of a body; the response has been sent already."""
    RESPONSE = auto()
    """The end of the response; bytes of further requests are kept."""
    CHUNKS = auto()
    """The end of the connection; all bytes belong to a chunked request."""
    CLOSED = auto()
    """The end of the connection; all bytes are dropped."""


class RequestSequence:
    """Passes on one request at a time: the next one only after the response to the one before."""

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self.phase = Phase.HEAD
        self.is_last = False
        """Whether the connection ends with the current request."""
        self._received = bytearray()
        """Bytes that have not been passed on yet."""
        self._searched = 0
        """How many of them have been searched for the end of a head."""
        self._body_bytes = 0
        """Bytes of the body that are still to come."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of the current request: the head, then the body as it comes. Raises MalformedHead."""
        self._received += data
        while size := self._passable():
            piece = bytes(self._received[:size])
            del self._received[:size]
            yield piece

    def end_response(self, *, keep_alive: bool) -> None:
        """The whole response has been written. `feed(b"")` gives what had to wait for it."""
        self.is_last = self.is_last or not keep_alive
        if self.phase is Phase.BODY:
            self.phase = Phase.ANSWERED_BODY
        elif self.phase is Phase.RESPONSE:
            self._end_request()

    def close(self) -> None:
        """Drop all bytes from here on."""
        self.phase = Phase.CLOSED
        self._received.clear()

    @property
    def is_full(self) -> bool:
        """Whether more bytes wait for the response than a head may have."""
        return self.phase is Phase.RESPONSE and len(self._received) > self._limits.head_bytes

    def _passable(self) -> int:
        """How many bytes to pass on now."""
        if not self._received:
            return 0
        match self.phase:
            case Phase.IDLE | Phase.HEAD:
                return self._begin_request()
            case Phase.BODY | Phase.ANSWERED_BODY:
                return self._continue_body()
            case Phase.CHUNKS:
                return len(self._received)
            case Phase.CLOSED:
                self._received.clear()
        return 0

    def _begin_request(self) -> int:
        """The length of the head, or 0 while it is incomplete."""
        self.phase = Phase.HEAD
        while self._searched == 0 and self._received.startswith(b"\r\n"):
            del self._received[:2]  # RFC 9112 §2.2: empty lines before a request are ignored.
        if self._received[:2] in (bytearray(), bytearray(b"\r")):
            return 0
        end = _find_end(self._received, self._searched, self._limits)
        if end is None:
            self._searched = len(self._received)
            return 0
        framing = _framing_of(bytes(self._received[:end]), self._limits)
        self._searched, self.is_last = 0, framing.is_last
        if framing.body_bytes is None:
            self.phase = Phase.CHUNKS
        else:
            self._body_bytes = framing.body_bytes
            self.phase = Phase.BODY if framing.body_bytes else Phase.RESPONSE
        return end

    def _continue_body(self) -> int:
        size = min(self._body_bytes, len(self._received))
        self._body_bytes -= size
        if self._body_bytes == 0 and self.phase is Phase.ANSWERED_BODY:
            self._end_request()
        elif self._body_bytes == 0:
            self.phase = Phase.RESPONSE
        return size

    def _end_request(self) -> None:
        self.phase = Phase.CLOSED if self.is_last else Phase.IDLE


def _find_end(received: bytearray, searched: int, limits: HeadLimits) -> int | None:
    """The length of the head that `received` begins with, or None while it is incomplete.

    searched: bytes that were in `received` at the last call. Raises MalformedHead as soon as it cannot become a head.
    """
    found = received.find(_END, max(0, searched - len(_END) + 1))
    end = None if found < 0 else found + len(_END)
    if (len(received) if end is None else end) > limits.head_bytes:
        raise MalformedHead(Reason.HEADERS_TOO_LARGE)
    if end is None and (
        _BEGINNING.match(received[:_BEGINNING_BYTES]) is None or _BROKEN_LINE.search(received, max(0, searched - 1))
    ):
        raise MalformedHead(Reason.BAD_REQUEST)
    return end


def _framing_of(head: bytes, limits: HeadLimits) -> Framing:
    """head: all lines, with the empty one. Raises MalformedHead."""
    matched = _HEAD.fullmatch(head)
    if matched is None:
        raise MalformedHead(Reason.BAD_REQUEST)
    _check_sizes(head, limits)
    values: dict[bytes, list[bytes]] = {}
    for name, value in _FRAMING.findall(head):
        values.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    body_bytes = _body_bytes(values.get(b"content-length", []), values.get(b"transfer-encoding", []))
    # What follows an upgrade or a CONNECT may be another protocol. And aiohttp's parser (3.14.5 and before) hands the
    # last trailer of a chunked request to the next request as a header.
    is_last = body_bytes is None or b"upgrade" in values or matched[1] == b"CONNECT"
    return Framing(body_bytes=body_bytes, is_last=is_last)


def _check_sizes(head: bytes, limits: HeadLimits) -> None:
    request_line, *headers = head[: -len(_END)].split(b"\r\n")
    if (
        len(request_line) > limits.request_line_bytes
        or len(headers) > limits.headers
        or any(len(header) > limits.header_bytes for header in headers)
    ):
        raise MalformedHead(Reason.HEADERS_TOO_LARGE)


def _body_bytes(lengths: list[bytes], codings: list[bytes]) -> int | None:
    """RFC 9112 §6.3: with two framing headers a proxy in front may see another end than we do."""
    if len(lengths) + len(codings) > 1:
        raise MalformedHead(Reason.BAD_REQUEST)
    if codings:
        if codings[0].lower() != b"chunked":
            raise MalformedHead(Reason.BAD_REQUEST)
        return None
    if not lengths:
        return 0
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise MalformedHead(Reason.BAD_REQUEST)
    return int(lengths[0])
