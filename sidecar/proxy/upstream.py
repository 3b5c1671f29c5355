"""The upstream: a request in, the head of its response out."""

import asyncio
import ssl

from sidecar.config.document import UpstreamSettings
from sidecar.core.errors import Fault, UpstreamCause, upstream_fault
from sidecar.core.observer import UpstreamName
from sidecar.proxy.pool import Pool
from sidecar.proxy.request_body import ClientBody
from sidecar.proxy.request_parser import BrokenBody
from sidecar.proxy.response_parser import Informational, UpstreamResponse
from sidecar.proxy.transport import LAST_CHUNK, HeldBytes, framed, framed_whole
from sidecar.proxy.upstream_connection import Stale, UpstreamConnection

Begun = tuple[UpstreamConnection, "asyncio.Future[UpstreamResponse]"]
"""The connection on which a request was sent, and the future of its response."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS"})


class Upstream:
    """The protected service, behind a pool of connections. tls, most_lent, held: as in Pool."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        tls: ssl.SSLContext | None = None,
        most_lent: int | None = None,
        held: HeldBytes | None = None,
    ) -> None:
        self._pool = Pool(settings, loop=loop, tls=tls, most_lent=most_lent, held=held)
        self._loop = loop
        fixed = {"keep": "", "upstream": settings.authority}
        self._host = fixed.get(settings.host, settings.host).encode()
        self._authority = settings.authority.encode()
        self.via = (settings.via or "").encode()
        """Our name in Via; empty to add none."""
        address = settings.address
        self.name = UpstreamName(
            scheme="http" if settings.tls is None else "https", host=address.host or address.path, port=address.port
        )

    def host_for(self, client_host: bytes) -> bytes:
        """The Host for the upstream; its own name if an HTTP/1.0 client sent none."""
        return self._host or client_host or self._authority

    async def send(
        self,
        head: bytes,
        *,
        method: str,
        body: ClientBody | None = None,
        upgrade: bool = False,
        informational: Informational | None = None,
        begun: Begun | None = None,
        answer_timeout: float | None = None,
    ) -> UpstreamResponse:
        """Send a request and wait until its response begins. The body is sent meanwhile and, if needed, afterwards.

        begun: set if it has been sent. upgrade: a 101 is accepted; the response's body is then one direction, and its
        `send` the other. answer_timeout: in seconds; None is that of the settings.

        The caller closes the response. Raises Fault (UPSTREAM_UNREACHABLE, _INVALID, _TIMEOUT, _BUSY) and BrokenBody.
        Only an idempotent request without a body is retried, and only if a reused connection ended before any byte of a
        response (RFC 9110 section 9.2.2).
        """
        pool = self._pool
        connection, response = begun or (await pool.acquire(), None)
        while True:
            if response is None:
                response = self._begin(connection, head, method, body, upgrade, informational, answer_timeout)
            try:
                return await response
            except Stale:
                if body is not None or method not in _IDEMPOTENT:
                    raise upstream_fault(UpstreamCause.IDLE_CLOSED) from None
            except asyncio.CancelledError:
                connection.withdraw(response)
                raise
            connection, response = await pool.fresh(), None

    def idle(self) -> UpstreamConnection | None:
        """An idle connection, if there is one."""
        return self._pool.idle()

    def reconfigure(self, most_lent: int | None) -> None:
        """most_lent: as in Pool."""
        self._pool.most_lent = most_lent

    def close_when_idle(self) -> None:
        """Finish running exchanges, and keep no idle connection."""
        self._pool.close_when_idle()

    def close(self) -> None:
        self._pool.close()

    def _begin(
        self,
        connection: UpstreamConnection,
        head: bytes,
        method: str,
        body: ClientBody | None,
        upgrade: bool,
        informational: Informational | None,
        answer_timeout: float | None,
    ) -> "asyncio.Future[UpstreamResponse]":
        response: asyncio.Future[UpstreamResponse] = self._loop.create_future()
        whole = None if body is None else body.at_hand()
        pieces = (head,) if body is None or whole is None else (head, framed_whole(whole) if body.chunked else whole)
        connection.begin(
            pieces,
            method,
            waiter=response,
            whole=body is None or whole is not None,
            upgrade=upgrade,
            informational=informational,
            answer_timeout=answer_timeout,
        )
        if body is None or whole is not None:
            return response
        connection.upload = self._loop.create_task(_upload(connection, body))
        return response


async def _upload(connection: UpstreamConnection, body: ClientBody) -> None:
    try:
        connection.expect_client()
        while data := await body.read():
            connection.expect_response()
            connection.send(framed(data) if body.chunked else data)
            await connection.drained()
            connection.expect_client()
        if body.chunked:
            connection.send(LAST_CHUNK)
        connection.finish_request()
    except BrokenBody as broken:
        connection.fail(broken, Fault(broken.reason))
    except ConnectionError:
        return  # The connection has already failed the response's future.
