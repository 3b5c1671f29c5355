"""Connections to the server with the counts, and why there is none. The only file that imports the client library."""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection, RedisCluster, Sentinel, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from sidecar.limiter.redis.url import RedisUrl
from sidecar.limiter.remote import Cause, Unavailable

Command = Sequence[str | int]


class Server:
    """A connection whose replies come in the order of its commands. Raises Unavailable, and is then unusable."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    @staticmethod
    def packed(command: Command) -> bytes:
        """A command for `write`. The parser's own function takes a tenth of the time of the client's."""
        packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # Its stub has one argument.
        return packed

    async def write(self, packed: bytes) -> None:
        """Pass commands to the kernel; waits while it accepts no more."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            raise Unavailable(cause_of(error), _words(error)) from None

    async def read(self) -> Any:
        """The next reply. Raises ScriptMissing, after which the connection is still usable."""
        try:
            return await self._connection.read_response(disable_decoding=True)
        except NoScriptError:
            raise ScriptMissing from None
        except (RedisError, OSError) as error:
            raise Unavailable(cause_of(error), _words(error)) from None

    async def close(self) -> None:
        """Close immediately; later replies are discarded."""
        await self._connection.disconnect(nowait=True)


class ScriptMissing(Exception):
    """The server does not know the script: it lost its scripts, or is a new one. Nothing was taken."""


class Connector:
    """Finds the server with `key`, and connects to it. Raises Unavailable; has no time limit of its own.

    ca: file of the certificate authorities to trust; empty: the system's.
    """

    def __init__(self, url: RedisUrl, key: str, *, ca: str = "") -> None:
        self._url, self._key, self._options = url, key, _options(url, ca)
        self._latest: tuple[tuple[str, int], AbstractConnection] | None = None

    async def connect(self) -> Server:
        """Reuses one object, because each new one would read all certificate authorities from disk."""
        try:
            place = await _place(self._url, self._key, self._options)
            if self._latest is None or self._latest[0] != place:
                self._latest = (place, _connection(self._url, *place, self._options))
            connection = self._latest[1]
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        except (TimeoutError, RedisError, RedisClusterException, OSError) as error:
            raise Unavailable(cause_of(error), _words(error)) from None
        return Server(connection)


def _options(url: RedisUrl, ca: str) -> dict[str, Any]:
    """Without time limits: the caller has one for the whole attempt."""
    options: dict[str, Any] = {
        "username": url.username or None,
        "password": url.password or None,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if url.tls:
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": ca or None}
        options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    return options


def _connection(url: RedisUrl, host: str, port: int, options: dict[str, Any]) -> AbstractConnection:
    if url.path:
        return UnixDomainSocketConnection(path=url.path, **options)
    kind = SSLConnection if url.tls else Connection
    return kind(host=host, port=port, db=url.database, **options)


async def _place(url: RedisUrl, key: str, options: dict[str, Any]) -> tuple[str, int]:
    if url.path:
        return "", 0
    if url.kind == "sentinel":
        return await _master(url, options)
    if url.kind == "cluster":
        return await _node(url, key, options)
    return url.hosts[0]


async def _master(url: RedisUrl, options: dict[str, Any]) -> tuple[str, int]:
    """The server's password is not for its sentinels: they are queried without one."""
    asked = {name: value for name, value in options.items() if name not in ("username", "password")}
    asked["ssl"] = url.tls
    sentinel = Sentinel(url.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    try:
        host, port = await sentinel.discover_master(url.master)
        return str(host), int(port)
    finally:
        for one in sentinel.sentinels:
            await one.aclose()


async def _node(url: RedisUrl, key: str, options: dict[str, Any]) -> tuple[str, int]:
    """The node that has the slot of `key` now. If the slot moves, a reply says so, and everything starts again."""
    nodes = [ClusterNode(host, port) for host, port in url.hosts]
    cluster = RedisCluster(startup_nodes=nodes, **{**options, "ssl": url.tls})
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(key)
        if node is None:
            raise RedisClusterException("no node holds the slot of the counts")
        return str(node.host), int(node.port)
    finally:
        await cluster.aclose()


_CAUSES: Sequence[tuple[tuple[type[BaseException], ...], Cause]] = (
    ((AuthenticationError, AuthorizationError, NoPermissionError), "auth"),
    ((BusyLoadingError,), "loading"),
    ((ReadOnlyError,), "readonly"),
    ((OutOfMemoryError,), "memory"),
    ((AskError, TryAgainError, ClusterError, RedisClusterException), "cluster"),
    ((asyncio.TimeoutError,), "timeout"),
    ((ResponseError,), "script"),
)


def _words(error: BaseException) -> str:
    """One line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def cause_of(error: BaseException) -> Cause:
    return next((cause for kinds, cause in _CAUSES if isinstance(error, kinds)), "connection")
