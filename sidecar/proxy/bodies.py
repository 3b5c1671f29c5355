"""The client's body: how it is framed, and reading it."""

from collections.abc import Callable

from aiohttp import StreamReader, hdrs
from aiohttp.http_parser import RawRequestMessage

from sidecar.proxy.upstream import BrokenBody

_MASKED = ("Content_Length", "Transfer_Encoding")
"""Names that CGI and WSGI take for the framing fields."""

_MAX_LENGTH_DIGITS = 19


class BadFraming(Exception):
    """Where the request ends can be read in more than one way, or is for another version of HTTP to say."""


def framing(message: RawRequestMessage) -> bytes:
    """The framing field of a request as the client sent it, as a header line with CRLF; empty where there is none.

    Raises BadFraming (RFC 9112 section 6).
    """
    headers = message.headers
    if message.version[0] != 1:
        raise BadFraming
    if _MASKED[0] in headers or _MASKED[1] in headers:
        raise BadFraming
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    length = headers.get(hdrs.CONTENT_LENGTH)
    if coding is None and length is None:
        return b""
    if coding is None:
        if length is None or not (length.isascii() and length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
            raise BadFraming
        return _line(message, b"content-length")
    if length is not None or coding.lower() != "chunked" or message.version < (1, 1):
        raise BadFraming
    return _line(message, b"transfer-encoding")


def _line(message: RawRequestMessage, wanted: bytes) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in message.raw_headers if field[0].lower() == wanted]
    if len(lines) != 1:
        raise BadFraming
    return lines[0]


class ClientBody:
    """A body that aiohttp parses as it comes in.

    go_ahead: asks the client to send it (`100 Continue`), before the first read; None where the client does not wait.
    """

    __slots__ = ("_go_ahead", "_payload", "chunked", "received")

    def __init__(self, payload: StreamReader, *, chunked: bool, go_ahead: Callable[[], None] | None) -> None:
        self._payload, self._go_ahead = payload, go_ahead
        self.chunked = chunked
        self.received = 0

    @property
    def waited_for(self) -> bool:
        """The client waits to be told to send it."""
        return self._go_ahead is not None

    def at_hand(self) -> bytes | None:
        if not self._payload.is_eof():
            return None
        data = self._payload.read_nowait()
        self.received = len(data)
        return data

    async def read(self) -> bytes:
        if self._go_ahead is not None:
            self._go_ahead()
            self._go_ahead = None
        try:
            data = await self._payload.readany()
        except RuntimeError:  # aiohttp's way of saying that the client is gone
            raise BrokenBody from None
        self.received += len(data)
        return data


def break_body(payload: StreamReader) -> None:
    """Whoever reads `payload` gets BrokenBody."""
    payload.set_exception(BrokenBody())
