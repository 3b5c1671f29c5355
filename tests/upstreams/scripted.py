"""An upstream that records exact bytes and responds by a script, misbehaving on purpose."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sidecar.config.fields import Address

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)

PATIENCE_SECONDS = 20.0
"""For what arrives immediately or not at all: long enough for a slow machine, shorter than any alternative."""


@dataclass
class Peer:
    """A connection as the upstream sees it. `seen` is every byte read from it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """Of the connection, from 1."""
    seen: bytearray = field(default_factory=bytearray)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """The other end has closed, or the script is over."""

    async def head(self) -> bytes:
        """Raises IncompleteReadError at the end of the connection."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.seen += head
        return head

    async def request(self) -> bytes:
        """A whole request, framing included."""
        head = await self.head()
        if _CHUNKED.search(head):
            return head + await self.until(b"0\r\n\r\n")
        length = _LENGTH.search(head)
        return head + await self.exactly(int(length[1]) if length else 0)

    async def until(self, mark: bytes) -> bytes:
        data = await self.reader.readuntil(mark)
        self.seen += data
        return data

    async def exactly(self, size: int) -> bytes:
        data = await self.reader.readexactly(size)
        self.seen += data
        return data

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Waits until it has `ended`; fails where it does not."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.ended.wait()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedUpstream:
    """Runs `script` for each connection; closes the connection when it returns."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.address = Address()

    async def start(self, path: str = "", *, host: str = "127.0.0.1", port: int = 0) -> None:
        # A limit of the stream's own must not fail a large body.
        if path:
            self._server = await asyncio.start_unix_server(self._accept, path, limit=1 << 20)
            self.address = Address(path=path)
            return
        self._server = await asyncio.start_server(self._accept, host, port, limit=1 << 20)
        self.address = Address(host=host, port=self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in self.peers:
            if not peer.ended.is_set():
                peer.reset()  # A clean close would stay open for unread data.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def seen(self) -> list[bytes]:
        """What came on each connection."""
        return [bytes(peer.seen) for peer in self.peers]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, len(self.peers) + 1)
        self.peers.append(peer)
        task = asyncio.get_running_loop().create_task(self._run(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, peer: Peer) -> None:
        try:
            await self._script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            peer.ended.set()
            peer.writer.close()


def answering(*responses: bytes) -> Script:
    """Read whole requests, give the answers in turn (the last one again and again) as they are."""

    async def script(peer: Peer) -> None:
        given = 0
        while True:
            await peer.request()
            await peer.send(responses[min(given, len(responses) - 1)])
            given += 1

    return script


def closing_after(response: bytes) -> Script:
    """One request, one answer, end of the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)

    return script


def plain(body: bytes = b"ok", *headers: bytes) -> bytes:
    """A well-formed answer."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
