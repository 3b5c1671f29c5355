"""The requests of one connection: the format of a head, where each begins and ends, and how its message is framed.

Stricter than other parsers, so that all agree where a request ends: lines end with CR LF, no line is folded or contains
control characters, and there is at most one framing header (RFC 9112 §2.2, §5, §6.3).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from sidecar.core.errors import Reason
from sidecar.core.model import Headers

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
REQUEST_LINE: Final = re.compile(
    rb"(%b++) ((?:/|\*(?= )|(?i:https?)://[^/?# ]|(?<=CONNECT )[^/ ])[!-~\x80-\xff]*+) HTTP/1\.([0-9])" % _TOKEN
)
"""A target has the origin, asterisk or absolute form (RFC 9112 §3.2); the authority form is only for CONNECT."""
HEADER_LINE: Final = re.compile(rb"(%b++):[\t ]*+((?:[\t\x20-\x7e\x80-\xff]*[!-~\x80-\xff])?)[\t ]*+" % _TOKEN)
_BEGINNING: Final = re.compile(rb"%b++(?: |\Z)" % _TOKEN)
"""The start of an incomplete head: a method, not a handshake of TLS or another protocol."""
_BEGINNING_BYTES: Final = 64
_BROKEN_LINE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_CONNECTION: Final = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"content_length",
        b"transfer_encoding",
        b"connection",
        b"upgrade",
        b"expect",
        b"host",
    }
)
"""Headers about this connection and its messages. `_`: CGI and WSGI treat it as `-`."""
ONCE: Final = frozenset(
    {b"content-location", b"content-range", b"content-type", b"etag", b"max-forwards", b"server", b"user-agent"}
)
"""Headers with a single value: with two, one server uses the first and another the last (RFC 9110 §5.3)."""
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_OTHER_CODINGS: Final = re.compile(
    rb"(?!chunked\b)%b++(?:[ \t]*,[ \t]*(?!chunked\b)%b++)*[ \t]*,[ \t]*chunked" % (_TOKEN, _TOKEN)
)
_END: Final = b"\r\n\r\n"
_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*+")


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


class MessageHead(Struct, frozen=True, gc=False):
    """The head of a request, and how its message ends."""

    method: str
    target: str
    version: tuple[int, int]
    """(1, 0) or (1, 1): a higher minor version is read as 1.1 (RFC 9110 §2.5)."""
    headers: Headers
    body_bytes: int | None
    """None for a chunked body."""
    framing: bytes
    """The framing header, as a line with CR LF; empty if there is none."""
    keep_alive: bool
    """Whether the client may send another request."""
    upgrade: str
    """The protocols that the client offers to upgrade to, as one value."""
    expects_continue: bool


def empty_lines(received: bytearray) -> int:
    """The length of the empty lines at the start of `received`; they are ignored before a request (RFC 9112 §2.2)."""
    found = _EMPTY_LINES.match(received)
    return 0 if found is None else found.end()


def find_end(received: bytearray, searched: int, limits: HeadLimits) -> int | None:
    """The length of the head at the start of `received`, or None while it is incomplete.

    searched: bytes of `received` at the last call. Raises MalformedHead as soon as it cannot become a head.
    """
    found = received.find(_END, max(0, searched - len(_END) + 1))
    end = None if found < 0 else found + len(_END)
    if (len(received) if end is None else end) > limits.head_bytes:
        raise MalformedHead(Reason.HEADERS_TOO_LARGE)
    if end is None:
        if not _begins_request(received) or _BROKEN_LINE.search(received, max(0, searched - 1)):
            raise MalformedHead(Reason.BAD_REQUEST)
        last = len(received) - received.rfind(b"\n") - 1
        if last > (limits.header_bytes if last < len(received) else limits.request_line_bytes):
            raise MalformedHead(Reason.HEADERS_TOO_LARGE)
    return end


_Line = tuple[tuple[bytes, bytes], bytes]
"""A header line: name and value, and the name in lower case."""


def _begins_request(received: bytearray) -> bool:
    end = received.find(b"\r\n")
    if end >= 0:
        return REQUEST_LINE.fullmatch(received, 0, end) is not None
    return _BEGINNING.match(received[:_BEGINNING_BYTES]) is not None


def read_head(head: bytes, limits: HeadLimits) -> MessageHead:
    """head: all lines, including the empty one. Raises MalformedHead."""
    request_line, *lines = head[: -len(_END)].split(b"\r\n")
    if len(lines) > limits.headers or len(request_line) > limits.request_line_bytes:
        raise MalformedHead(Reason.HEADERS_TOO_LARGE)
    start = REQUEST_LINE.fullmatch(request_line)
    if start is None:
        raise MalformedHead(Reason.BAD_REQUEST)
    headers, special, once = list[tuple[bytes, bytes]](), list[_Line](), list[bytes]()
    for text in lines:
        pair, lower = _read_line(text, limits)
        headers.append(pair)
        if lower in _CONNECTION:
            special.append((pair, lower))
        elif lower in ONCE:
            once.append(lower)
    if len(once) > 1 and len(once) > len(set(once)):
        raise MalformedHead(Reason.BAD_REQUEST)
    return _message_head(start, tuple(headers), special)


def _read_line(text: bytes, limits: HeadLimits) -> _Line:
    if len(text) > limits.header_bytes:
        raise MalformedHead(Reason.HEADERS_TOO_LARGE)
    found = HEADER_LINE.fullmatch(text)
    if found is None:
        raise MalformedHead(Reason.BAD_REQUEST)
    return (found[1], found[2]), found[1].lower()


def _message_head(start: re.Match[bytes], headers: Headers, special: list[_Line]) -> MessageHead:
    """Raises MalformedHead."""
    version = (1, 0) if start[3] == b"0" else (1, 1)
    if len(special) == 1 and special[0][1] == b"host":
        method, target = start[1].decode(), start[2].decode("utf-8", "surrogateescape")
        return MessageHead(method, target, version, headers, 0, b"", version == (1, 1), "", False)
    values: dict[bytes, list[bytes]] = {}
    framed_by = b""
    for (name, value), lower in special:
        values.setdefault(lower, []).append(value)
        framed_by = name if lower in _FRAMING else framed_by
    hosts = len(values.get(b"host", ()))
    if hosts > 1 or hosts < version[1]:  # RFC 9112 §3.2
        raise MalformedHead(Reason.BAD_REQUEST)
    body_bytes = _body_bytes(values, version)
    options = {option.strip(b" \t").lower() for each in values.get(b"connection", ()) for option in each.split(b",")}
    return MessageHead(
        method=start[1].decode(),
        target=start[2].decode("utf-8", "surrogateescape"),
        version=version,
        headers=headers,
        body_bytes=body_bytes,
        framing=_framing(framed_by, body_bytes),
        keep_alive=b"close" not in options and (version > (1, 0) or b"keep-alive" in options),
        upgrade=b", ".join(values.get(b"upgrade", ())).decode("latin-1") if b"upgrade" in options else "",
        expects_continue=version > (1, 0) and b"100-continue" in map(bytes.lower, values.get(b"expect", ())),
    )


def _body_bytes(values: dict[bytes, list[bytes]], version: tuple[int, int]) -> int | None:
    """RFC 9112 §6.3: with two framing headers a proxy in front may see another end than we do."""
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1 or b"content_length" in values or b"transfer_encoding" in values:
        raise MalformedHead(Reason.BAD_REQUEST)
    if codings:
        coding = codings[0].lower()
        if version == (1, 0) or (coding != b"chunked" and _OTHER_CODINGS.fullmatch(coding) is None):
            raise MalformedHead(Reason.BAD_REQUEST)
        if coding != b"chunked":
            raise MalformedHead(Reason.UNSUPPORTED_CODING)
        return None
    if not lengths:
        return 0
    if CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise MalformedHead(Reason.BAD_REQUEST)
    return int(lengths[0])


def _framing(name: bytes, body_bytes: int | None) -> bytes:
    """The framing header with the parsed length: `0200` is 200 to us, but could be octal to the next server."""
    if body_bytes is None:
        return name + b": chunked\r\n"
    return b"%b: %d\r\n" % (name, body_bytes) if name else b""


# The requests of one connection, before aiohttp parses them.


class Phase(Enum):
    """What a connection waits for."""

    IDLE = auto()
    """The first byte of another request."""
    HEAD = auto()
    """The rest of a head."""
    BODY = auto()
    """The rest of a body."""
    ANSWERED_BODY = auto()
    """The rest of a body; the response has already been sent."""
    RESPONSE = auto()
    """The end of the response; bytes of further requests are kept."""
    CHUNKS = auto()
    """The end of the connection; all bytes belong to a chunked request."""
    ANSWERED_CHUNKS = auto()
    """The same, but the response has already been sent."""
    CLOSED = auto()
    """The end of the connection; all bytes are discarded."""


class RequestSequence:
    """Passes on one request at a time: the next one only after the response to the previous one."""

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self.phase = Phase.HEAD
        self.is_last = False
        """Whether the connection ends with the current request."""
        self._received = bytearray()
        """Bytes not passed on yet."""
        self._searched = 0
        """How many of them were already searched for the end of a head."""
        self._body_bytes = 0
        """Bytes of the body that are still to come."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of the current request: the head, then the body as it arrives. Raises MalformedHead."""
        self._received += data
        while size := self._passable():
            piece = bytes(self._received[:size])
            del self._received[:size]
            yield piece

    def end_response(self, *, keep_alive: bool) -> None:
        """The whole response has been written. `feed(b"")` returns the bytes that had to wait for it."""
        self.is_last = self.is_last or not keep_alive
        if self.phase is Phase.BODY:
            self.phase = Phase.ANSWERED_BODY
        elif self.phase is Phase.CHUNKS:
            self.phase = Phase.ANSWERED_CHUNKS
        elif self.phase is Phase.RESPONSE:
            self._end_request()

    def close(self) -> None:
        """Discard all bytes from now on."""
        self.phase = Phase.CLOSED
        self._received.clear()

    @property
    def is_full(self) -> bool:
        """Whether more bytes than the longest head are waiting for the response."""
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
            case Phase.CHUNKS | Phase.ANSWERED_CHUNKS:
                return len(self._received)
            case Phase.CLOSED:
                self._received.clear()
        return 0

    def _begin_request(self) -> int:
        """The length of the head, or 0 while it is incomplete."""
        self.phase = Phase.HEAD
        if self._searched == 0:
            del self._received[: empty_lines(self._received)]
        if self._received[:2] in (bytearray(), bytearray(b"\r")):
            return 0
        end = find_end(self._received, self._searched, self._limits)
        if end is None:
            self._searched = len(self._received)
            return 0
        head = read_head(bytes(self._received[:end]), self._limits)
        if _is_newer(self._received):
            raise MalformedHead(Reason.BAD_REQUEST)
        # Bytes after an upgrade or a CONNECT may be another protocol. And aiohttp's parser (up to 3.14.5) passes the
        # last trailer of a chunked request to the next request as a header.
        self.is_last = head.body_bytes is None or head.method == "CONNECT" or _offers_upgrade(head.headers)
        self._searched = 0
        if head.body_bytes is None:
            self.phase = Phase.CHUNKS
        else:
            self._body_bytes = head.body_bytes
            self.phase = Phase.BODY if head.body_bytes else Phase.RESPONSE
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


def _offers_upgrade(headers: Headers) -> bool:
    """Whether the head has Upgrade, whatever Connection says."""
    return any(name.lower() == b"upgrade" for name, _ in headers)


def _is_newer(received: bytearray) -> bool:
    """HTTP/1.2 or higher, which aiohttp does not parse."""
    return received[received.index(b"\r\n") - 1] not in b"01"
