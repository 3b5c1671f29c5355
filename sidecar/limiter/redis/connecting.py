"""Connections to the one server that holds the counts, and the reasons why there is none.

Uses the client library's parser only: the library's own connections cost about ten microseconds a reply.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import hiredis

from sidecar.limiter.redis.url import Host, RedisUrl
from sidecar.limiter.remote import Cause, Unavailable

Command = Sequence[str | int]


class ScriptMissing(Exception):
    """The server does not know the script: it lost its scripts, or is another server. Nothing was taken."""


class Server(asyncio.Protocol):
    """A connection whose replies come in the order of its commands, until it fails."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._take: Callable[[Any], None] = _unexpected
        self._end: Callable[[Unavailable], None] = _ignore
        self._problem: Unavailable | None = None

    @staticmethod
    def packed(command: Command) -> bytes:
        """What to `write`."""
        packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # Its stub names one argument.
        return packed

    def listen(self, take: Callable[[Any], None], end: Callable[[Unavailable], None]) -> None:
        """take: gets each reply, or ScriptMissing in its place, and may raise Unavailable. end: gets the failure."""
        self._take, self._end = take, end
        if self._problem is not None:
            end(self._problem)

    def write(self, packed: bytes) -> None:
        """Send commands. What the kernel does not accept yet is buffered, at most until the reply is overdue."""
        if self._transport is not None:
            self._transport.write(packed)

    async def ask(self, command: Command) -> Any:
        """Send one command while nothing else listens. Returns the reply. Raises Unavailable and ScriptMissing."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(answered: Any) -> None:
            self.listen(_unexpected, _ignore)
            if not reply.done():
                reply.set_result(answered)

        def end(problem: Unavailable) -> None:
            if not reply.done():
                reply.set_exception(problem)

        self.listen(take, end)
        self.write(self.packed(command))
        answered = await reply
        if isinstance(answered, ScriptMissing):
            raise answered
        return answered

    def close(self) -> None:
        """Close at once. Later replies are discarded."""
        self._fail(Unavailable("connection", "it was closed"))

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._problem is None and (reply := self._reader.gets()) is not False:
                self._take(_checked(reply) if reply.__class__ is hiredis.ReplyError else reply)
        except Unavailable as problem:
            self._fail(problem)
        except hiredis.HiredisError as error:
            self._fail(Unavailable.of("connection", error))

    def connection_lost(self, exc: Exception | None) -> None:
        closed = Unavailable("connection", "it closed the connection")
        self._fail(closed if exc is None else Unavailable.of("connection", exc))

    def _fail(self, problem: Unavailable) -> None:
        if self._problem is None:
            self._problem = problem
            if self._transport is not None:
                self._transport.abort()
            self._end(problem)


def _unexpected(reply: Any) -> None:
    raise Unavailable("script", "it sent a reply that nobody asked for")


def _ignore(problem: Unavailable) -> None:
    """The next call of `listen` reports the problem."""


_CAUSES: Final[Mapping[str, Cause]] = {
    "WRONGPASS": "auth",
    "NOAUTH": "auth",
    "NOPERM": "auth",
    "LOADING": "loading",
    "READONLY": "readonly",
    "OOM": "memory",
    "MOVED": "cluster",
    "ASK": "cluster",
    "TRYAGAIN": "cluster",
    "CLUSTERDOWN": "cluster",
    "CROSSSLOT": "cluster",
    "MASTERDOWN": "cluster",
}
"""By the first word of an error."""
_FULL: Final = "ERR max number of clients"


def _checked(error: Exception) -> ScriptMissing:
    """Raises Unavailable for any error except the one after which the connection is still usable."""
    words = str(error)
    code = words.partition(" ")[0]
    if code == "NOSCRIPT":
        return ScriptMissing(words)
    raise Unavailable.of("connection" if words.startswith(_FULL) else _CAUSES.get(code, "script"), error)


class Connector:
    """Finds the server with `key`, and connects to it. Raises Unavailable; has no time limit of its own.

    ca: file of the certificate authorities to trust; empty: the system's.
    """

    def __init__(self, url: RedisUrl, key: str, *, ca: str = "") -> None:
        self._url, self._ca = url, ca
        self._place: Callable[[], Awaitable[Host]] = self._named
        if url.kind != "server":
            # Imported only if needed: it takes a tenth of a second and several megabytes.
            from sidecar.limiter.redis.discovery import place

            self._place = partial(place, url, key, ca=ca)

    async def connect(self) -> Server:
        try:
            server = await self._opened()
        except (OSError, ValueError) as error:  # An invalid host name raises UnicodeError.
            cause: Cause = "timeout" if isinstance(error, TimeoutError) else "connection"
            raise Unavailable.of(cause, error) from None
        try:
            await self._greet(server)
        except BaseException:
            server.close()
            raise
        return server

    async def _opened(self) -> Server:
        loop, url = asyncio.get_running_loop(), self._url
        if url.path:
            return (await loop.create_unix_connection(Server, url.path))[1]
        host, port = await self._place()
        # In a thread, because this reads all certificate authorities from the disk.
        context = await asyncio.to_thread(_tls_context, self._ca) if url.tls else None
        return (await loop.create_connection(Server, host, port, ssl=context))[1]

    async def _named(self) -> Host:
        return self._url.hosts[0]

    async def _greet(self, server: Server) -> None:
        url = self._url
        if url.password:
            await _authenticate(server, [url.username, url.password] if url.username else [url.password])
        if url.database:
            await server.ask(("SELECT", url.database))


async def _authenticate(server: Server, credentials: Sequence[str]) -> None:
    try:
        await server.ask(("AUTH", *credentials))
    except Unavailable as problem:
        # If the server has no password, or is too old for users, the error begins with ERR.
        raise Unavailable("auth", str(problem)) if problem.cause == "script" else problem from None


def _tls_context(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
