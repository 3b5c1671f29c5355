"""Parses the bytes of an upstream's connection into responses, one at a time. No I/O."""

import re
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from typing import Protocol

from httptools import HttpParserError, HttpParserInvalidStatusError, HttpParserUpgrade, HttpResponseParser

from sidecar.core.errors import Fault, UpstreamCause
from sidecar.core.headers import HOP_BY_HOP

# An upstream's response: its head, and its body as it arrives.


HeaderList = list[tuple[bytes, bytes]]
Informational = Callable[[int, bytes, HeaderList], None]
"""Called for an interim response: status, reason phrase, end-to-end headers."""


def field_lines(fields: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """Header fields as lines without their ends."""
    return map(b": ".join, fields)


def response_start(status: int, reason: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A response's head as we write it, up to the last of `headers`, without the end of that line."""
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (status, reason), *field_lines(headers)])


class Flow(Protocol):
    """Something that can be paused."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Source(Flow, Protocol):
    """The connection that a response comes from, which is above it (a Protocol, so that no import goes up)."""

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> bool: ...

    def set_producer(self, producer: Flow | None) -> None: ...

    def release(self, response: "UpstreamResponse") -> None: ...


class UpstreamResponse:
    """The head of a response, and its body as it arrives. Only end-to-end headers, exactly as sent.

    names: those of `headers`, in lower case. complete: the whole body is here.
    early: the response began before the request was completely sent. chunked, sized: how the upstream delimits the
    body; if neither, it ends with the connection.
    """

    __slots__ = (
        "_done", "_failure", "_loop", "_pieces", "_write", "chunked", "complete", "early", "has_length", "headers",
        "names", "on_gone", "reason", "source", "start", "status", "upgrade", "version",
    )  # fmt: skip

    def __init__(
        self, status: int, reason: bytes, headers: HeaderList, names: set[bytes], loop: AbstractEventLoop
    ) -> None:
        self.status, self.reason, self.headers, self.names = status, reason, headers, names
        self.start = b""
        """Its `response_start`, if known."""
        self.chunked = self.has_length = self.complete = self.early = False
        self.version = "1.1"
        """The HTTP version of the upstream."""
        self.upgrade: bytes | None = None
        """For a 101: the protocol that the upstream has switched to."""
        self.source: Source | None = None
        self.on_gone: Callable[[], None] | None = None
        """Called at the end of an upgraded connection."""
        self._loop = loop
        self._pieces: list[bytes] = []
        self._write: Callable[[bytes], None] | None = None
        self._done: Future[None] | None = None
        self._failure: Fault | None = None

    @property
    def flowing(self) -> bool:
        """Whether the body is consumed as it arrives."""
        return self._write is not None

    def pause_reading(self) -> None:
        """The consumer of the body cannot take more now."""
        if self.source is not None and not self.complete:
            self.source.pause_reading()

    def resume_reading(self) -> None:
        if self.source is not None and not self.complete:
            self.source.resume_reading()

    def take(self) -> bytes:
        """The part of the body that has arrived."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def stream_to(self, write: Callable[[bytes], None]) -> None:
        """Pass the body to `write`, each piece as it arrives. Raises Fault if the response is cut off."""
        if here := self.take():
            write(here)
        if self._failure is not None:
            raise self._failure
        if not self.complete:
            self._write = write
            self._done = self._loop.create_future()
            await self._done

    def stop(self) -> None:
        """Ignore the rest: `stream_to` returns as if the body were complete."""
        self._write = _drop
        self.end()

    def close(self) -> None:
        """The response is no longer wanted: abort what is still in progress."""
        if self.source is not None:
            self.source.release(self)

    # After a 101: the direction to the upstream.

    def send(self, data: bytes) -> None:
        if self.source is not None:
            self.source.send(data)

    def send_eof(self) -> bool:
        """End our side. False if that is impossible without closing."""
        return self.source is not None and self.source.send_eof()

    def set_producer(self, producer: Flow | None) -> None:
        """Set the source of what is sent: it pauses while the upstream does not accept more."""
        if self.source is not None:
            self.source.set_producer(producer)

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        if self._write is not None:
            self._write(data)
        else:
            self._pieces.append(data)

    def end(self) -> None:
        self.complete = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def fail(self, fault: Fault) -> None:
        self._failure = fault
        if self._done is not None and not self._done.done():
            self._done.set_exception(self._failure)


def _drop(_: bytes) -> None:
    pass


MAX_HEAD_BYTES = 65536
"""Most bytes of a head; also of what may be between two pieces of a chunked body, and after the last one."""
_MANY_PIECES = 256
"""In one read. A body in such small chunks is read in smaller pieces, because each chunk takes time."""

_READ = HOP_BY_HOP | {b"content-length"}
_BODILESS = frozenset({204, 304})
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Controls that are not allowed in a reason phrase; the parser accepts most of them (RFC 9112 section 4)."""
_UNNAMEABLE = frozenset({b"content-length", b"close", b"keep-alive"})
"""Connection options that do not name a field to remove; framing fields cannot be removed that way."""


class InvalidResponse(Exception):
    """The upstream sent something that is not a response to the request."""

    def __init__(self, cause: UpstreamCause) -> None:
        super().__init__(cause)
        self.cause = cause


class ResponseParser:
    """Parses the responses of one connection, strictly (RFC 9112); call `expect` before each.

    answer: the final head, once it has arrived. complete: so has its body. surplus: bytes came after that.
    in_small_pieces: the body arrives in many small chunks. bodiless: it declared a body that such a response never has.
    keep_alive: the connection can carry another exchange. switched: after a 101, all bytes are the response's body.
    """

    __slots__ = (
        "_between", "_cause", "_chunked", "_head_bytes", "_headers", "_informational", "_interim", "_left",
        "_length", "_loop", "_method", "_named", "_names", "_parser", "_pieces", "_reason", "_upgrade",
        "_upgrade_asked", "complete", "excess_data", "in_small_pieces", "keep_alive", "response", "unexpected_body",
        "upgraded",
    )  # fmt: skip

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._parser: HttpResponseParser | None = None
        self.response: UpstreamResponse | None = None
        self.complete = self.excess_data = self.keep_alive = self.unexpected_body = False
        self._headers: HeaderList = []
        self._names: set[bytes] = set()
        self._named: frozenset[bytes] = frozenset()
        self._chunked = self._interim = self.upgraded = False
        self._length: int | None = None
        self._left = 0
        """Bytes that are still to come of a body with a Content-Length."""
        self._pieces: list[bytes] = []
        """Pieces of the body in the current read."""
        self._between = 0
        """Bytes since the last piece: of chunk sizes and extensions, and of trailers."""
        self.in_small_pieces = False
        self._upgrade: bytes | None = None
        self._cause: UpstreamCause | None = None
        """The exception of a callback: the parser only reports that one was raised."""

    def expect(self, method: str, *, upgrade: bool = False, informational: Informational | None = None) -> None:
        """The next response is for a request with `method`; `upgrade`: a 101 is allowed."""
        if self._parser is None:
            self._parser = HttpResponseParser(self)
        self._left = self._between = 0
        self.in_small_pieces = False
        self._method, self._upgrade_asked, self._informational = method, upgrade, informational
        self.response = None
        self.complete = self.excess_data = self.upgraded = self.unexpected_body = False
        self._head_bytes = 0
        self._begin()

    def feed(self, data: bytes) -> None:
        """Raises InvalidResponse, except for bytes after a complete response, which set `excess_data`."""
        if self.response is not None and (self.upgraded or self._left > 0):
            self._pass(self.response, data)
            return
        if self._parser is None:
            self.excess_data = True
            return
        if self.response is None:
            self._head_bytes += len(data)
        else:
            self._between += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgraded:
            self._switch(data[upgraded.args[0] :])
        except HttpParserError as error:
            if not self.complete:
                raise InvalidResponse(self._cause or self._cause_of(error)) from None
            self.excess_data = True
        self._hand_on_pieces()
        if self.response is None and self._head_bytes > MAX_HEAD_BYTES:
            raise InvalidResponse(UpstreamCause.HEAD_TOO_LARGE)
        if self._between > MAX_HEAD_BYTES and not self.complete:
            raise InvalidResponse(UpstreamCause.BAD_CHUNK)

    def end_of_input(self) -> bool:
        """The upstream ended its side. Whether that completes the response: only if nothing else delimits it."""
        response = self.response
        if response is not None and not self.complete and not response.has_length and not response.chunked:
            self._end(response)
        return self.complete

    def close(self) -> None:
        """Break the cycle between the parser and its callbacks."""
        self._parser = None

    # Parser callbacks.

    def on_message_begin(self) -> None:
        if self.complete:
            self.excess_data = True

    def on_status(self, data: bytes) -> None:
        if not self.complete:
            self._reason += data

    def on_header(self, name: bytes, value: bytes) -> None:
        if (lower := name.lower()) in _READ:
            self._read(lower, name, value)
        elif self.response is None:
            self._headers.append((name, value))
            self._names.add(lower)

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self.response is not None or parser is None:
            return
        status = parser.get_status_code()
        self._interim = status < 200 and status != 101
        version = self._check(status, parser)
        if self._head_bytes > MAX_HEAD_BYTES and self._header_bytes() > MAX_HEAD_BYTES:
            raise self._invalid(UpstreamCause.HEAD_TOO_LARGE)
        if (status == 204 or self._interim) and self._length is not None:
            self._named |= {b"content-length"}  # RFC 9110 section 8.6: a 204 or 1xx must not have one; a 304 may.
        if self._named:
            self._headers = [pair for pair in self._headers if pair[0].lower() not in self._named]
            self._names -= self._named
        if self._interim:
            if self._informational is not None and status != 100:
                self._informational(status, self._reason, self._headers)
            return
        self.response = response = UpstreamResponse(status, self._reason, self._headers, self._names, self._loop)
        response.chunked, response.has_length = self._chunked, self._length is not None
        response.version = version
        self._left = self._length or 0
        if status == 101:
            response.upgrade = self._upgrade
        elif self._method == "HEAD":
            # The parser cannot know that a response to HEAD has no body: this message is its last.
            self.unexpected_body = self._declares_body()
            self._end(response)
            self._parser = None
        elif status in _BODILESS:
            self.unexpected_body = self._declares_body()

    def on_body(self, data: bytes) -> None:
        if self.complete or self.response is None:
            self.excess_data = True
        else:
            self._pieces.append(data)
            self._left -= len(data)
            self._between = 0

    def on_message_complete(self) -> None:
        if self._interim:
            self._begin()
        elif self.response is not None and not self.complete and self.response.status != 101:
            self._end(self.response)

    # Below: steps of the above.

    def _begin(self) -> None:
        self._reason = b""
        self._headers = []
        self._names = set()
        self._named = frozenset()
        self._chunked = self._interim = False
        self._length = None
        self._upgrade = None

    def _pass(self, response: UpstreamResponse, data: bytes) -> None:
        """Pass on bytes that need no parsing: the rest of a body with a Content-Length, or the bytes of a tunnel."""
        if self.upgraded:
            response.feed(data)
            return
        self.excess_data = len(data) > self._left
        piece = data[: self._left] if self.excess_data else data
        self._left -= len(piece)
        response.feed(piece)
        if not self._left:
            self._parser = None
            self._end(response)

    def _hand_on_pieces(self) -> None:
        """Pass pieces on together: a write for each of thousands of small chunks would block the loop."""
        if not self._pieces or self.response is None:
            return
        pieces, self._pieces = self._pieces, []
        self.in_small_pieces = len(pieces) > _MANY_PIECES
        self.response.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _end(self, response: UpstreamResponse) -> None:
        self._hand_on_pieces()
        self.complete = True
        self._left = 0
        response.end()

    def _read(self, lower: bytes, name: bytes, value: bytes) -> None:
        if self.response is not None:
            return
        if lower == b"content-length":
            self._length = int(value)
            self._headers.append((name, b"%d" % self._length))  # `0200` could be an octal number to the client.
        elif lower == b"transfer-encoding":
            # Any other coding would have to be decoded to reframe the body; none is in use.
            if self._chunked or value.strip(b" \t").lower() != b"chunked":
                raise self._invalid(UpstreamCause.TRANSFER_CODING)
            self._chunked = True
        elif lower == b"connection":
            self._named |= {option.strip(b" \t").lower() for option in value.split(b",")}
        elif lower == b"upgrade":
            self._upgrade = value

    def _check(self, status: int, parser: HttpResponseParser) -> str:
        """Check the version. HTTP/1.0 has no chunks, and keeps the connection only with a Connection field."""
        self.keep_alive = parser.should_keep_alive()
        if status < 100 or _CONTROL.search(self._reason) is not None:
            raise self._invalid(UpstreamCause.BAD_STATUS)
        if status == 101 and not self._may_switch(parser):
            raise self._invalid(UpstreamCause.UNEXPECTED_UPGRADE)
        version_matters = self._chunked or not self.keep_alive or bool(self._named)
        version = parser.get_http_version() if version_matters else "1.1"
        if version not in ("1.0", "1.1"):
            raise self._invalid(UpstreamCause.HTTP_VERSION)
        if self._chunked and version == "1.0":
            raise self._invalid(UpstreamCause.TRANSFER_CODING)
        if self._method == "HEAD":
            self.keep_alive = (version == "1.1" or self.keep_alive) and b"close" not in self._named
        self._named -= _UNNAMEABLE
        return version

    def _may_switch(self, parser: HttpResponseParser) -> bool:
        framed = self._chunked or self._length is not None
        return self._upgrade_asked and bool(parser.should_upgrade()) and not framed

    def _declares_body(self) -> bool:
        return self._chunked or bool(self._length)

    def _header_bytes(self) -> int:
        return sum(len(name) + len(value) + len(b": \r\n") for name, value in self._headers)

    def _switch(self, rest: bytes) -> None:
        if self.response is None or self.response.status != 101:
            raise InvalidResponse(UpstreamCause.UNEXPECTED_UPGRADE)
        self.upgraded = True
        if rest:
            self.response.feed(rest)

    def _invalid(self, cause: UpstreamCause) -> InvalidResponse:
        self._cause = cause
        return InvalidResponse(cause)

    def _cause_of(self, error: HttpParserError) -> UpstreamCause:
        """The cause, from what was read before it; llhttp names the field or the part that it rejected."""
        words = str(error)
        if self.response is not None:
            return UpstreamCause.BAD_CHUNK
        if isinstance(error, HttpParserInvalidStatusError):
            return UpstreamCause.BAD_STATUS
        if "Content-Length" in words or "Transfer-Encoding" in words:
            framed = self._chunked or self._length is not None
            return UpstreamCause.TWO_LENGTHS if framed else UpstreamCause.BAD_LENGTH
        if "HTTP/" in words:
            return UpstreamCause.NOT_HTTP
        return UpstreamCause.HTTP_VERSION if "version" in words or "dot" in words else UpstreamCause.BAD_HEADER
