"""The client's body: how it is framed, and reading it."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import StreamReader
from aiohttp.http_parser import RawRequestMessage

from sidecar.core.errors import Reason

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content_length", b"transfer_encoding"})
"""The framing fields, and the names that CGI and WSGI take for them."""

_LENGTHS = frozenset(map(len, _FRAMING))

_MAX_LENGTH_DIGITS = 19


class BrokenBody(Exception):
    """The client's body cannot be read to its end, or is not wanted: malformed, too large, too slow."""

    def __init__(self, reason: Reason = Reason.BAD_REQUEST) -> None:
        super().__init__(reason.value)
        self.reason = reason


class BadFraming(Exception):
    """Where the request ends can be read in more than one way, or is for another version of HTTP to say."""


def framing(message: RawRequestMessage) -> bytes:
    """The framing field of a request as the client sent it, as a header line with CRLF; empty where there is none.

    Raises BadFraming (RFC 9112 section 6).
    """
    if message.version[0] != 1:
        raise BadFraming
    line = b""
    for name, value in message.raw_headers:
        if len(name) in _LENGTHS and (lower := name.lower()) in _FRAMING:
            if line or not _delimits(lower, value, message.version):
                raise BadFraming
            line = b"%b: %b\r\n" % (name, value)
    return line


def _delimits(field: bytes, value: bytes, version: tuple[int, int]) -> bool:
    if field == b"content-length":
        return value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS
    return field == b"transfer-encoding" and value.lower() == b"chunked" and version >= (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRules:
    """How large a body may be, and how slow.

    rate: bytes a second, on average over `window_seconds` of waiting for the client; 0 for no floor.
    loop_time: the event loop's own time, in seconds.
    """

    limit: int | None
    rate: int
    window_seconds: float
    loop_time: Callable[[], float]


class ClientBody:
    """A body that aiohttp parses as it comes in.

    length: as announced; None where it is chunked. go_ahead: asks the client to send it (`100 Continue`), before the
    first read; None where the client does not wait.
    """

    __slots__ = ("_credit_seconds", "_go_ahead", "_payload", "_rules", "_waiting_since", "length", "received")

    def __init__(
        self, payload: StreamReader, rules: BodyRules, *, length: int | None, go_ahead: Callable[[], None] | None
    ) -> None:
        self._payload, self._rules, self._go_ahead = payload, rules, go_ahead
        self.length = length
        self.received = 0
        self._credit_seconds = rules.window_seconds
        self._waiting_since: float | None = None

    @property
    def chunked(self) -> bool:
        """How it is framed; if not so, the head gives its length."""
        return self.length is None

    @property
    def waited_for(self) -> bool:
        """The client waits to be told to send it."""
        return self._go_ahead is not None

    @property
    def too_large(self) -> bool:
        """Past the limit by what is announced, or by what has come."""
        limit = self._rules.limit
        return limit is not None and (self.length or self._payload.total_bytes) > limit

    def overdue(self, now: float) -> bool:
        """The client is waited for, and has been too slow for too long."""
        since = self._waiting_since
        return since is not None and self._rules.rate > 0 and now - since > self._credit_seconds

    def at_hand(self) -> bytes | None:
        """All of it, if all of it has arrived; may be called once."""
        if not self._payload.is_eof() or self.too_large:
            return None
        data = self._payload.read_nowait()
        self.received = len(data)
        return data

    async def read(self) -> bytes:
        """The next piece, empty at the end. Raises BrokenBody."""
        if self._go_ahead is not None:
            self._go_ahead()
            self._go_ahead = None
        self._waiting_since = began = self._rules.loop_time()
        try:
            data = await self._payload.readany()
        except RuntimeError:  # aiohttp's way of saying that the client is gone
            raise BrokenBody from None
        finally:
            self._waiting_since = None
        self._account(len(data), self._rules.loop_time() - began)
        if self._rules.limit is not None and self.received > self._rules.limit:
            raise BrokenBody(Reason.BODY_TOO_LARGE)
        return data

    def _account(self, size: int, waited_seconds: float) -> None:
        """Each byte buys time to wait, each wait spends it; a window's worth at most is kept."""
        self.received += size
        rules = self._rules
        if rules.rate:
            credit = self._credit_seconds - waited_seconds + size / rules.rate
            self._credit_seconds = min(credit, rules.window_seconds)


def break_body(payload: StreamReader, reason: Reason = Reason.BAD_REQUEST) -> None:
    """Whoever reads `payload` gets BrokenBody."""
    payload.set_exception(BrokenBody(reason))
