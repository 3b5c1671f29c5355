"""Upgrades: after the gate's Allow and the upstream's 101, bytes both ways until both ends finish or one is gone."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

from sidecar.http.requests import MessageHead
from sidecar.proxy.response_parser import Flow, UpstreamResponse

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]+)?")

_UNDECIDED = frozenset({"h2c", "h2", "http", "https", "tls"})
"""Protocols that carry further requests, which the gate would not see (h2c smuggling)."""


def offered(message: MessageHead) -> str:
    """The protocols that the client offers, as one field value; empty if none may be passed on.

    HTTP/1.1 only (RFC 9110 section 7.8).
    """
    if not message.upgrade or message.version != (1, 1):
        return ""
    for protocol in message.upgrade.split(","):
        token = protocol.strip(" \t")
        if not _TOKEN.fullmatch(token) or token.partition("/")[0].lower() in _UNDECIDED:
            return ""
    return message.upgrade


def among(chosen: bytes | None, offer: str) -> bool:
    """Whether the upstream switched to a protocol that was offered."""
    wanted = {protocol.strip(" \t").lower() for protocol in offer.split(",")}
    return chosen is not None and chosen.strip(b" \t").decode("latin-1").lower() in wanted


POLICY_VIOLATION = b"\x88\x0e\x03\xf0access ended"
"""A close frame of a server, with the code 1008 (RFC 6455 section 7.4.1)."""
_CLOSE = 8
_MOST_FRAMES = 4096
"""In one piece; they take about a millisecond."""
_LEAST_FRAMES, _FRAME_BYTES = 64, 8
"""Frames allowed in any piece, plus one for this many bytes: empty frames would cost too much."""


class Frames:
    """Tracks what one end of a WebSocket sends, to know where its frames end (RFC 6455 section 5.2)."""

    __slots__ = ("_head", "_left", "_over")

    def __init__(self) -> None:
        self._head = b""
        """The first bytes of a frame, until its length is known."""
        self._left = 0
        """Bytes of the frame that are still to come."""
        self._over = False
        """Whether a close frame, which is the last, has arrived, or too many frames at once to track."""

    @property
    def may_close(self) -> bool:
        """Whether a close frame may be sent: no frame is incomplete."""
        return not (self._over or self._left or self._head)

    def follow(self, data: bytes) -> None:
        """data: the next piece of what it sends."""
        if self._over or len(data) < self._left:
            self._left -= len(data)
            return
        if self._head:
            data, self._head = self._head + data, b""
        at, size = self._left, len(data)
        for _ in range(min(_MOST_FRAMES, _LEAST_FRAMES + size // _FRAME_BYTES)):
            if at >= size:
                self._left = at - size
                return
            length = _frame_bytes(data, at)
            if not length:
                self._head, self._left = data[at:], 0
                return
            self._over = self._over or data[at] & 0x0F == _CLOSE
            at += length
        self._over = True


def _frame_bytes(data: bytes, at: int) -> int:
    """The length of the frame that begins at `at`; 0 if its head is incomplete."""
    if at + 2 > len(data):
        return 0
    length = data[at + 1] & 0x7F
    extended = 0 if length < 126 else 2 if length == 126 else 8
    head = 2 + extended + (4 if data[at + 1] & 0x80 else 0)
    if at + head > len(data):
        return 0
    return head + (int.from_bytes(data[at + 2 : at + 2 + extended]) if extended else length)


class Client(Flow, Protocol):
    """A client's connection, which is above its exchanges and tunnels (a Protocol, so that no import goes up)."""

    peer: str
    is_probe: bool
    scheme: Literal["http", "https"]

    @property
    def closing_when_idle(self) -> bool:
        """Whether this request is the connection's last."""

    @property
    def writing_paused(self) -> bool: ...

    def take_arrived(self) -> None:
        """Respond to the request that arrived. Must not raise."""

    def begin(self, exchange: Any) -> None:
        """Begin an exchange without a task. exchange: an Exchange, which is defined above this file."""

    def carry_on(self, work: Callable[[], Coroutine[object, None, None]]) -> None:
        """Let a task do the rest."""

    def end(self, exchange: Any) -> None:
        """End an exchange that had no task."""

    def date_line(self) -> bytes:
        """The Date line for a response that begins now, after CR LF."""

    @property
    def has_sent_more(self) -> bool:
        """Whether bytes have arrived after the request: of another protocol, or of another request."""

    def write(self, data: bytes) -> None: ...

    def write_soon(self, *pieces: bytes) -> None:
        """Write before the loop waits again; only for complete messages, because there is no flow control."""

    def set_producer(self, producer: Flow | None) -> None:
        """Set the source of what is written; it pauses while the client does not keep up."""

    def send_eof(self) -> bool: ...

    def switch(self, tunnel: "Tunnel") -> bytes:
        """Pass everything that arrives to `tunnel`; returns what has already arrived."""

    def reset(self) -> None:
        """Reset the connection, so that an incomplete response cannot be taken for a complete one."""


class Tunnel:
    """Bytes both ways. A side that has finished sending may still receive."""

    __slots__ = (
        "_client", "_client_ended", "_frames", "_moved", "_moved_at", "_over", "_response", "_sent", "received"
    )  # fmt: skip

    def __init__(self, client: Client, response: UpstreamResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._response = client, response
        is_websocket = response.upgrade is not None and response.upgrade.strip(b" \t").lower() == b"websocket"
        self._frames = Frames() if is_websocket else None
        self._over: asyncio.Future[None] = loop.create_future()
        self._client_ended = False
        self._sent = self._moved = 0
        self._moved_at = 0.0
        self.received = 0
        """Bytes from the client."""

    async def run(self, write: Callable[[bytes], None]) -> None:
        """`write` sends to the client. Raises Fault if the upstream breaks off."""
        client, response = self._client, self._response
        response.on_gone = self._finish
        client.set_producer(response)
        response.set_producer(client)
        try:
            if early := client.switch(self):
                self.take(early)
            await response.stream_to(lambda data: self._give(write, data))
            if not self._client_ended and client.send_eof():
                await self._over
        finally:
            response.set_producer(None)
            client.set_producer(None)

    def take(self, data: bytes) -> None:
        """Forward what the client sent."""
        self.received += len(data)
        self._response.send(data)

    def end(self) -> bool:
        """The client ended its side. Returns whether it can still receive."""
        self._client_ended = True
        self._finish()
        return self._response.send_eof()

    def close(self, write: Callable[[bytes], None]) -> bool:
        """End a WebSocket with a close frame, which the client gets time to read. False if none can be sent."""
        if self._client_ended or self._frames is None or not self._frames.may_close:
            return False
        write(POLICY_VIOLATION)
        self._response.stop()
        self._response.close()  # Whatever the client sends from now on is discarded.
        return True

    def overdue(self, now: float, patience_seconds: float) -> bool:
        """Whether one side has finished and nothing has been transferred for that long."""
        if not self._client_ended and not self._response.complete:
            return False
        moved = self.received + self._sent
        if moved != self._moved or not self._moved_at:
            self._moved, self._moved_at = moved, now
        return now - self._moved_at >= patience_seconds

    def _give(self, write: Callable[[bytes], None], data: bytes) -> None:
        self._sent += len(data)
        if self._frames is not None:
            self._frames.follow(data)
        write(data)

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
