"""Every client's connection: counted, made, and looked after once a second."""

import asyncio
from collections.abc import Callable
from typing import NoReturn, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from sidecar.http.connection_limits import Seats
from sidecar.proxy.client_connection import ClientConnection, ClientRules, Host
from sidecar.proxy.malformed import Notices
from sidecar.proxy.transport import Outbox

_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5


class Connections(Server):
    """aiohttp's server, making connections of ours.

    trusts: addresses that are many clients' at once, to which the cap by address does not apply.
    """

    def __init__(self, host: Host, rules: ClientRules, *, trusts: Callable[[str], bool]) -> None:
        super().__init__(_never, handler_cancellation=True)
        self._host, self._rules, self._trusts = host, rules, trusts
        self._seats = Seats()
        self._timer: asyncio.TimerHandle | None = None
        self.notices = Notices(self._loop)
        self.outbox = Outbox(self._loop)

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, self._host, self._rules)

    def follow(self, rules: ClientRules, *, trusts: Callable[[str], bool]) -> None:
        """Rules for the connections that come from here on."""
        self._rules, self._trusts = rules, trusts

    def open(self) -> list[ClientConnection]:
        return cast(list[ClientConnection], self.connections)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `leave` is to follow."""
        limits = self._rules.limits
        of_one = None if peer == "" or self._trusts(peer) else limits.connections_per_address
        cap = self._seats.take(peer, most=limits.connections, most_of_one=of_one)
        if cap is not None:
            self.notices.count("connection", f"refused (limits.{cap})", peer)
            self._host.turned_away(cap)
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)
        return True

    def leave(self, peer: str) -> None:
        self._seats.leave(peer)

    def make_admitted(self) -> ClientConnection:
        """A connection that has been admitted already."""
        return ClientConnection(self, self._host, self._rules, admitted=True)

    def close(self) -> None:
        """Look after nothing any longer."""
        if self._timer is not None:
            self._timer.cancel()
        self.notices.tell()

    def _check_seconds(self) -> float:
        limits = self._rules.limits
        timeouts = (limits.head_timeout, limits.answer_timeout, limits.idle_timeout, self._rules.bodies.window_seconds)
        return min(_CHECK_SECONDS, min(timeouts) / _CHECKS_IN_A_TIMEOUT)

    def _check(self) -> None:
        now, self._timer = self._loop.time(), None
        for connection in self.open():
            connection.check(now)
        if self._seats:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)


async def _never(request: BaseRequest) -> NoReturn:
    raise NotImplementedError
