"""One request of a client, and its response."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from operator import itemgetter

from sidecar.core.errors import Fault, Reason, UpstreamCause, upstream_fault
from sidecar.core.model import Allow, Decision, Headers, RequestHead, Response
from sidecar.core.observer import CLIENT_CLOSED_REQUEST, Forwarding
from sidecar.core.upstream_request import propagate, with_via
from sidecar.gate.gate import Gate
from sidecar.http.requests import MessageHead
from sidecar.proxy.request_body import BodyRules, ClientBody
from sidecar.proxy.response_parser import HeaderList, UpstreamResponse, field_lines, response_start
from sidecar.proxy.transport import LAST_CHUNK, framed, framed_whole
from sidecar.proxy.tunnel import Client, Tunnel, among, offered

# Response heads, as bytes.


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_NO_BODY = frozenset({204, 304})
_NAME = itemgetter(0)
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def local_response_head(response: Response, *, end: bytes) -> bytes:
    """The head of the sidecar's own response."""
    return _local_head(response) + end


@lru_cache(maxsize=256)
def _local_head(response: Response) -> bytes:
    """The head without its end. Cached, because error responses repeat."""
    lines = [response_start(response.status, _PHRASES.get(response.status, b""), response.headers)]
    if response.status not in _NO_BODY:
        lines.append(b"Content-Length: %d" % len(response.body))
    return b"\r\n".join(lines)


def interim(status: int, reason: bytes, headers: HeaderList) -> bytes:
    """An interim response from the upstream."""
    return response_start(status, reason, headers) + b"\r\n\r\n"


def upstream_head(response: UpstreamResponse, ours: Headers, *, chunked: bool, end: bytes) -> bytes:
    """The upstream's head as sent, except that fields of `ours` replace its fields of the same names."""
    headers, start = response.headers, response.start
    if not response.names.isdisjoint(map(bytes.lower, map(_NAME, ours))):
        names = [name.lower() for name, _ in ours]
        headers, start = [field for field in headers if field[0].lower() not in names], b""
    lines = [start or response_start(response.status, response.reason, headers), *field_lines(ours)]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    return b"\r\n".join(lines) + end


def has_body(method: str, status: int) -> bool:
    """Whether a response has a body at all (RFC 9112 section 6.3)."""
    return method != "HEAD" and status not in _NO_BODY


def persistence(keep_alive: bool, version: tuple[int, int]) -> bytes:
    """The end of a head: whether the connection stays open."""
    if not keep_alive:
        return b"\r\nConnection: close\r\n\r\n"
    return b"\r\n\r\n" if version >= (1, 1) else b"\r\nConnection: keep-alive\r\n\r\n"


def id_line(header: bytes, request_id: str) -> bytes:
    """A line that follows others of a head; empty where no header is to hold the id, or none is known."""
    return b"\r\n%b: %b" % (header, request_id.encode()) if header and request_id else b""


def switched(protocol: bytes) -> bytes:
    """The end of a 101's head."""
    return b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol


_EVENT_ENDS = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\r\n", b"\n\r")
"""A blank line, with any line ending before it."""


class EventStream:
    """Passes an event stream on, and can end it after an event (HTML, section 9.2.6)."""

    __slots__ = ("_response", "_tail", "_write")

    def __init__(self, response: UpstreamResponse, write: Callable[[bytes], None]) -> None:
        self._response, self._write, self._tail = response, write, b""

    def write(self, data: bytes) -> None:
        self._tail = (self._tail + data[-4:])[-4:]
        self._write(data)

    def end(self) -> bool:
        """End the stream. False, without ending it, in the middle of an event."""
        if self._tail and not self._tail.endswith(_EVENT_ENDS):
            return False
        self._response.stop()
        return True


def is_event_stream(response: UpstreamResponse) -> bool:
    """Whether it is an event stream that can be read (not compressed) and has no declared length."""
    if response.has_length or b"content-encoding" in response.names:
        return False
    types = [value for name, value in response.headers if name.lower() == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip(b" \t").lower() == b"text/event-stream"


SWITCHING_PROTOCOLS = 101

SHORT_BODY_BYTES = 65536
"""An unread body up to this length is read and discarded; for a longer one, the connection is closed."""


class Pending(ABC):
    """Waits for the upstream's response to a request, instead of a task."""

    __slots__ = ()

    @abstractmethod
    def withdraw(self) -> None:
        """Stop waiting."""

    @abstractmethod
    def cancel(self) -> None:
        """The client has disconnected."""


class Exchange:
    """A request and its response, while they are in progress."""

    __slots__ = (
        "_events",
        "_offers_upgrade",
        "_tunnel",
        "began",
        "body",
        "bytes_out",
        "cause",
        "client",
        "cut",
        "decision",
        "forwarding",
        "framing",
        "gate",
        "head",
        "keep_alive",
        "pending",
        "reason",
        "request_id",
        "responded",
        "sent",
        "status",
        "upgrade",
        "upstream_seconds",
    )  # fmt: skip

    def __init__(self, client: Client, head: RequestHead, framing: bytes = b"") -> None:
        """framing: the framing header, as a line with CR LF; empty if there is none."""
        self.client, self.head, self.framing = client, head, framing
        self.body: ClientBody | None = None
        self.upgrade = ""
        """The protocols that the client offers to upgrade to, if they can be passed on."""
        self._offers_upgrade = False
        self._tunnel: Tunnel | None = None
        self._events: EventStream | None = None
        self.keep_alive = True
        self.decision: Decision | None = None
        self.request_id = ""
        """Of what is answered without a decision."""
        self.status = CLIENT_CLOSED_REQUEST
        self.reason: Reason | None = None
        self.cause: UpstreamCause | None = None
        self.gate: Gate | None = None
        """The gate's decision, if the request is forwarded."""
        self.upstream_seconds: float | None = None
        self.forwarding: Forwarding | None = None
        """The upstream span, if the request was sent to the upstream and is traced."""
        self.began = self.sent = 0.0
        """When the request arrived and when it was sent to the upstream, by the server's clock."""
        self.pending: Pending | None = None
        """Waits for the upstream's response if no task does."""
        self.bytes_out = 0
        self.responded = self.cut = False
        """Whether a response has begun; and whether the sidecar has ended the exchange before it was whole."""

    @classmethod
    def of_message(cls, client: Client, message: MessageHead, rules: BodyRules) -> "Exchange":
        """An exchange for a request whose body is still to come."""
        head = RequestHead(
            method=message.method,
            target=message.target,
            headers=message.headers,
            peer=client.peer,
            scheme=client.scheme,
            version=message.version,
        )
        exchange = cls(client, head, message.framing)
        if message.body_bytes != 0:
            go_ahead = exchange._go_ahead if message.expects_continue else None
            exchange.body = ClientBody(client, rules, length=message.body_bytes, go_ahead=go_ahead)
        exchange.keep_alive = message.keep_alive
        if message.upgrade:
            exchange._offer(message)
        return exchange

    @property
    def is_probe(self) -> bool:
        """Whether this is the sidecar's own health probe."""
        return self.client.is_probe

    @property
    def bytes_in(self) -> int:
        if self._tunnel is not None:
            return self._tunnel.received
        return self.body.received if self.body is not None else 0

    def check(self, now: float, patience_seconds: float) -> None:
        """Enforce the timeouts: of a body that arrives too slowly, and of a half-closed tunnel."""
        if self.body is not None and self.body.overdue(now):
            self.body.fail(Reason.REQUEST_TIMEOUT)
        elif self._tunnel is not None and self._tunnel.overdue(now, patience_seconds):
            self.client.reset()

    def check_body(self, most_bytes: float | None = None) -> None:
        """Raises Fault if the body is known to be too large. most_bytes: overrides the general limit."""
        if self.body is None:
            return
        if most_bytes is not None:
            self.body.limit = most_bytes
        if self.body.too_large:
            raise Fault(Reason.BODY_TOO_LARGE)

    def respond(self, response: Response, reason: Reason | None = None, *, id_header: bytes = b"") -> None:
        """Send the sidecar's own response. reason: of a denial or a fault. id_header: for the request id."""
        if self.body is not None:
            self._settle_unread_body(self.body)
        body = response.body if has_body(self.head.method, response.status) else b""
        self.status, self.reason, self.bytes_out = response.status, reason, len(body)
        end = self.client.date_line() + self._id_line(id_header) + self._persistence()
        self.responded = True
        self.client.write_soon(local_response_head(response, end=end), body)

    async def send_upstream_response(self, response: UpstreamResponse, ours: Headers, *, id_header: bytes) -> None:
        """Send the upstream's response, with `ours` added to its head. Raises Fault only before anything is sent.

        id_header: for the request id, if the upstream sent none.
        """
        if response.status == SWITCHING_PROTOCOLS:
            await self._switch(response, ours, id_header)
            return
        chunked = self.begin_upstream_response(response, ours, id_header)
        if not response.complete:
            await self._stream(response, chunked)

    def begin_upstream_response(self, response: UpstreamResponse, ours: Headers, id_header: bytes) -> bool:
        """Send the head, and the body if it is complete. Returns whether the body is chunked."""
        with_body = has_body(self.head.method, response.status)
        chunked = with_body and response.chunked and self.head.version >= (1, 1)
        if response.early or (with_body and not chunked and not response.has_length):
            self.keep_alive = False
        self.status = response.status
        end = b"" if b"date" in response.names else self.client.date_line()
        end += self._missing_id_line(response, id_header) + self._persistence()
        head = upstream_head(response, ours, chunked=chunked, end=end)
        self.responded = True
        if response.complete:
            body = response.take()
            self.bytes_out = len(body)
            self.client.write_soon(head, framed_whole(body) if chunked else body)
        else:
            self.client.write_soon(head)
        return chunked

    def interim(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """Pass on an interim response, if the client accepts one (RFC 9110 section 15.2)."""
        if self.head.version >= (1, 1) and not self.client.writing_paused:
            self.client.write(interim(status, reason, headers))

    def request_head(self, allow: Allow, host: bytes, via: bytes = b"") -> bytes:
        """The head for the upstream. via: our name in Via. Raises Fault (LOOP_DETECTED)."""
        target = allow.target.encode("utf-8", "surrogateescape")
        start = b"%b %b HTTP/1.1\r\nHost: %b" % (self.head.method.encode(), target, host)
        headers = allow.headers if self.forwarding is None else propagate(self.forwarding.trace, allow.headers)
        if via:
            headers = with_via(headers, "{}.{}".format(*self.head.version), via)
        lines = [start, *field_lines(headers)]
        if self.upgrade:
            lines.append(b"Connection: Upgrade\r\nUpgrade: %b" % self.upgrade.encode())
        return b"\r\n".join(lines) + b"\r\n" + self.framing + b"\r\n"

    async def _switch(self, response: UpstreamResponse, ours: Headers, id_header: bytes) -> None:
        """Become a tunnel, for the protocol that the client offered."""
        if response.upgrade is None or not among(response.upgrade, self.upgrade):
            raise upstream_fault(UpstreamCause.UNEXPECTED_UPGRADE)
        self.status, self.keep_alive = response.status, False
        self._tunnel = Tunnel(self.client, response, asyncio.get_running_loop())
        self.responded = True
        end = self._missing_id_line(response, id_header) + switched(response.upgrade)
        self.client.write_soon(upstream_head(response, ours, chunked=False, end=end))
        try:
            await self._tunnel.run(self._write_piece)
        except Fault as fault:
            self.reset(fault.reason, fault.cause)

    async def _stream(self, response: UpstreamResponse, chunked: bool) -> None:
        client, write = self.client, self._write_chunk if chunked else self._write_piece
        client.set_producer(response)
        if is_event_stream(response):
            self._events = EventStream(response, write)
            write = self._events.write
        try:
            await response.stream_to(write)
            if chunked:
                client.write(LAST_CHUNK)
        except Fault as fault:
            self.reset(fault.reason, fault.cause)
        finally:
            client.set_producer(None)

    def reset(self, reason: Reason, cause: UpstreamCause | None = None) -> None:
        """Abort a response that has begun and cannot be completed."""
        self.reason, self.cause, self.keep_alive = reason, cause, False
        self.client.reset()

    def end(self, reason: Reason) -> None:
        """End an exchange whose key lost its access: cleanly if the protocol allows it, and only once."""
        if self.reason is None and self._end_in_order():
            self.reason = reason
        else:
            self.reset(reason)

    def _offer(self, message: MessageHead) -> None:
        self._offers_upgrade = True
        self.upgrade = offered(message)
        if self.upgrade and self.framing:
            self.upgrade, self.keep_alive = "", False

    def _end_in_order(self) -> bool:
        if self._tunnel is not None:
            return self._tunnel.close(self._write_piece)
        return self._events is not None and self._events.end()

    def _write_piece(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.client.write(data)

    def _write_chunk(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.client.write(framed(data))

    def _missing_id_line(self, response: UpstreamResponse, header: bytes) -> bytes:
        return b"" if header.lower() in response.names else self._id_line(header)

    def _id_line(self, header: bytes) -> bytes:
        """Who was refused can say which request it was."""
        return id_line(header, self.request_id if self.decision is None else self.decision.request_id)

    def _persistence(self) -> bytes:
        if self.client.closing_when_idle or (self._offers_upgrade and self.client.has_sent_more):
            self.keep_alive = False
        return persistence(self.keep_alive, self.head.version)

    def _go_ahead(self) -> None:
        if not self.responded and self.body is not None and not self.body.ended:
            self.client.write(CONTINUE)

    def _settle_unread_body(self, body: ClientBody) -> None:
        """Read an unread body to its end if it is short and arriving; otherwise close the connection."""
        length = body.length
        if not body.ended and (body.waited_for or length is None or length > SHORT_BODY_BYTES):
            self.keep_alive = False
