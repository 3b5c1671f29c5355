"""Every client's connection: counted, made, and looked after once a second."""

import asyncio
from collections.abc import Callable
from typing import NoReturn, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server

from sidecar.core.forwarding import address_subject
from sidecar.proxy.client import ClientConnection, ClientRules, Host
from sidecar.proxy.malformed import Notices
from sidecar.proxy.outbox import Outbox

_CHECK_SECONDS = 1.0
_CHECKS_IN_A_TIMEOUT = 5


class Connections(Server):
    """aiohttp's server, making connections of ours.

    trusts: addresses that are many clients' at once, to which the cap by address does not apply.
    """

    def __init__(self, host: Host, rules: ClientRules, *, trusts: Callable[[str], bool]) -> None:
        super().__init__(_never, handler_cancellation=True)
        self._host, self._rules, self._trusts = host, rules, trusts
        self._count = 0
        self._by_address: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.notices = Notices(self._loop)
        self.outbox = Outbox(self._loop)

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, self._host, self._rules)

    def open(self) -> list[ClientConnection]:
        return cast(list[ClientConnection], self.connections)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `leave` is to follow."""
        limits, address = self._rules.limits, address_subject(peer)
        from_there = self._by_address.get(address, 0)
        too_many = from_there >= limits.connections_per_address and peer != "" and not self._trusts(peer)
        if too_many or self._count >= limits.connections:
            what = "connections refused, too many of one address," if too_many else "connections refused, too many"
            self.notices.count(what, peer)
            return False
        self._count += 1
        self._by_address[address] = from_there + 1
        if self._timer is None:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)
        return True

    def leave(self, peer: str) -> None:
        self._count -= 1
        address = address_subject(peer)
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

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
        if self._count:
            self._timer = self._loop.call_later(self._check_seconds(), self._check)


async def _never(request: BaseRequest) -> NoReturn:
    raise NotImplementedError
