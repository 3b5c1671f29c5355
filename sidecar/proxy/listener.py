"""Binding, and ending without resetting those who have just come."""

import asyncio
import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from aiohttp.web_server import Server

from sidecar.config.settings import Address

_MOST_WAITING = 4096


class PlainListener:
    """Clients that speak no TLS; `server` makes their connections."""

    timeout_seconds = 0.0
    """Of the handshake, which there is none of."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._bound: asyncio.Server | None = None

    async def start(self, address: Address, *, backlog: int) -> Address:
        """Bind; gives where. Raises OSError."""
        if address.path:
            self._bound = await self._loop.create_unix_server(self._server, address.path, backlog=backlog)
            return address
        self._bound = bound = await self._loop.create_server(self._server, address.host, address.port, backlog=backlog)
        return Address(host=address.host, port=bound.sockets[0].getsockname()[1])

    async def close(self, patience_seconds: float) -> None:
        """Take no more connections; those that have been made by then are there when this returns."""
        if self._bound is None:
            return
        held = [socket.socket(fileno=os.dup(listening.fileno())) for listening in self._bound.sockets]
        self._bound.close()
        self._bound = None
        coming = [self._loop.connect_accepted_socket(self._server, accepted) for accepted in waiting(held)]
        await asyncio.gather(*coming, return_exceptions=True)
        await asyncio.sleep(0)  # What the loop accepted in this very turn gets to know of it in the next.


def waiting(listening: Iterable[socket.socket]) -> list[socket.socket]:
    """Close `listening`, and give the connections that the kernel has made already, which closing alone would reset."""
    accepted: list[socket.socket] = []
    for each in listening:
        each.setblocking(False)
        with suppress(OSError):  # BlockingIOError, above all: nobody waits any longer.
            while len(accepted) < _MOST_WAITING:
                accepted.append(each.accept()[0])
        each.close()
    return accepted
