"""Which server holds the counts, where Sentinels or a Cluster's nodes know it. Alone imports the client library."""

import ssl
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
)

from sidecar.limiter.redis.url import Host, RedisUrl
from sidecar.limiter.remote import Cause, Unavailable


async def place(url: RedisUrl, key: str, *, ca: str) -> Host:
    """The server behind the sentinels, or the Cluster's node that holds `key` now. Raises Unavailable and OSError.

    If the key's slot moves later, a reply says so, and the node is looked up again. ca: as for Connector.
    """
    try:
        options = _options(url, ca)
        return await (_master(url, options) if url.kind == "sentinel" else _node(url, key, options))
    except (RedisError, RedisClusterException) as error:
        raise Unavailable.of(_cause_of(error), error) from None


def _options(url: RedisUrl, ca: str) -> dict[str, Any]:
    """Without time limits: the caller has one for the whole lookup."""
    options: dict[str, Any] = {
        "username": url.username or None,
        "password": url.password or None,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "ssl": url.tls,
    }
    if url.tls:
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": ca or None}
        options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    return options


async def _master(url: RedisUrl, options: dict[str, Any]) -> Host:
    """Sentinels do not accept the server's password, so they are asked without one."""
    asked = {name: value for name, value in options.items() if name not in ("username", "password")}
    sentinel = Sentinel(url.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    try:
        host, port = await sentinel.discover_master(url.master)
        return str(host), int(port)
    finally:
        for one in sentinel.sentinels:
            await one.aclose()


async def _node(url: RedisUrl, key: str, options: dict[str, Any]) -> Host:
    nodes = [ClusterNode(host, port) for host, port in url.hosts]
    cluster = RedisCluster(startup_nodes=nodes, **options)
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(key)
        if node is None:
            raise RedisClusterException("no node holds the slot of the counts")
        return str(node.host), int(node.port)
    finally:
        await cluster.aclose()


_CAUSES: Final[Sequence[tuple[tuple[type[BaseException], ...], Cause]]] = (
    ((AuthenticationError, AuthorizationError, NoPermissionError), "auth"),
    ((BusyLoadingError,), "loading"),
    ((ClusterError, RedisClusterException), "cluster"),
)


def _cause_of(error: BaseException) -> Cause:
    return next((cause for kinds, cause in _CAUSES if isinstance(error, kinds)), "connection")
