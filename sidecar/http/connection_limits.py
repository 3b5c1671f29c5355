"""Open connections, counted against two limits, and a log of those who were refused."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Literal

from sidecar.config.document import Limits
from sidecar.core.client_address import address_subject
from sidecar.core.units import counted

_log = logging.getLogger(__name__)
LimitName = Literal["connections", "connections_per_address", "open_files"]
"""The name of a limit below `limits` in the configuration; `open_files`: of the process."""


class ConnectionLimits:
    """Counts connections in total and by client address (for IPv6, by /64).

    Each successful `acquire` is followed by one `release` of the same peer.
    """

    def __init__(self) -> None:
        self._total = 0
        self._by_address: dict[str, int] = {}

    def acquire(self, peer: str, *, most: int, most_of_one: int | None) -> LimitName | None:
        """None, or the limit that one more connection would exceed, which is then not counted.

        most_of_one: None for a peer that stands for many clients.
        """
        address = address_subject(peer)
        from_address = self._by_address.get(address, 0)
        if most_of_one is not None and from_address >= most_of_one:
            return "connections_per_address"
        if self._total >= most:
            return "connections"
        self._total += 1
        self._by_address[address] = from_address + 1
        return None

    def release(self, peer: str) -> None:
        self._total -= 1
        address = address_subject(peer)
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    def __len__(self) -> int:
        return self._total


NOTICE_SECONDS: Final = 10.0
"""How often the log is told, at most."""


class RateLimitedLog:
    """Counts what strangers do, and logs a line for all of it now and then: nothing of their bytes, no tracebacks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float = NOTICE_SECONDS) -> None:
        self._loop, self._seconds = loop, seconds
        self._seen: dict[tuple[str, str], tuple[int, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, noun: str, fate: str, last: str) -> None:
        """`fate` befell one more `noun` (of both there are few); `last` is where it came from."""
        number, _ = self._seen.get((noun, fate), (0, ""))
        self._seen[noun, fate] = (number + 1, last)
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self.flush)

    def flush(self) -> None:
        """Log what has been counted."""
        seen, self._seen = self._seen, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for (noun, fate), (number, last) in seen.items():
            amount = counted(number, noun)
            _log.warning("sidecar: %s %s in the last %g s, last from %s", amount, fate, self._seconds, last)


_LINGERING_SHARE = 4


class Places:
    """The places of a listener's connections.

    trusts: addresses that stand for many clients; the limit by address does not apply to them.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        trusts: Callable[[str], bool],
        rate_limited: RateLimitedLog,
        on_refused: Callable[[str], None],
    ) -> None:
        """on_refused: gets the limit that one more connection would have exceeded."""
        self.lingering = 0
        """Connections that only wait for their client to read the last response."""
        self._limits, self._trusts = limits, trusts
        self._held = ConnectionLimits()
        self._rate_limited, self._on_refused = rate_limited, on_refused

    def reconfigure(self, limits: Limits, *, trusts: Callable[[str], bool]) -> None:
        """For connections from here on."""
        self._limits, self._trusts = limits, trusts

    @property
    def may_linger(self) -> bool:
        """Those who were refused leave room for others."""
        return self.lingering < max(self._limits.connections // _LINGERING_SHARE, 1)

    def admit(self, peer: str) -> bool:
        """Whether one more may come; if so, `release` is to follow."""
        limits = self._limits
        of_one = None if peer == "" or self._trusts(peer) else limits.connections_per_address
        exceeded = self._held.acquire(peer, most=limits.connections, most_of_one=of_one)
        if exceeded is not None:
            self._rate_limited.count("connection", f"refused (limits.{exceeded})", peer)
            self._on_refused(exceeded)
        return exceeded is None

    def release(self, peer: str) -> None:
        self._held.release(peer)
