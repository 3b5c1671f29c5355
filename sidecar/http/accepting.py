"""Accepting connections: how many there may be, and what is logged about refused ones."""

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final, Literal

from sidecar.config.document import Limits
from sidecar.config.fields import Address
from sidecar.core.client_address import address_subject
from sidecar.core.units import counted

BACKLOG: Final = 4096
"""Connections that the kernel queues before they are accepted."""
_AT_ONCE: Final = 100
"""Most connections accepted between two turns of the loop."""
_PAUSE_SECONDS: Final = 0.2
"""Pause of accepting if no more files can be opened."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


Bind = Callable[[Sequence[Address], int], tuple[list[socket.socket], tuple[Address, ...]]]
"""`bound`, or a function that returns sockets that are already bound."""


class Acceptor:
    """Accepts connections. Create it inside the running loop.

    meet: receives each connection, non-blocking, and the name of its peer. on_exhausted: called if there is no
    descriptor for a waiting connection; accepting resumes a moment later.
    """

    def __init__(self, meet: Callable[[socket.socket, object], None], *, on_exhausted: Callable[[], None]) -> None:
        self._meet, self._on_exhausted = meet, on_exhausted
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    def start(
        self, addresses: Sequence[Address], *, backlog: int = BACKLOG, bind: Bind | None = None
    ) -> tuple[Address, ...]:
        """Bind, and return the addresses. Raises BindError."""
        self._sockets, places = (bind or bound)(addresses, backlog)
        for listening in self._sockets:
            self._watch(listening)
        return places

    def stop(self) -> list[socket.socket]:
        """Stop accepting. Returns the listening sockets, which the caller must close."""
        sockets, self._sockets = self._sockets, []
        for listening in sockets:
            self._loop.remove_reader(listening)
        return sockets

    def _watch(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            for _ in range(_AT_ONCE):
                accepted, name = listening.accept()
                accepted.setblocking(False)
                self._meet(accepted, name)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._loop.remove_reader(listening)
            self._loop.call_later(_PAUSE_SECONDS, self._watch, listening)
            if error.errno in _EXHAUSTED:
                self._on_exhausted()


def waiting(listening: Iterable[socket.socket]) -> list[socket.socket]:
    """Close `listening`, and return connections that the kernel already accepted, which closing alone would reset."""
    accepted: list[socket.socket] = []
    for each in listening:
        each.setblocking(False)
        with suppress(OSError):  # Above all BlockingIOError: no connection is waiting.
            while len(accepted) < BACKLOG:
                accepted.append(each.accept()[0])
        each.close()
    return accepted


def peer_of(accepted: socket.socket) -> object:
    with suppress(OSError):  # It may already be gone.
        return accepted.getpeername()
    return ""


# Binding.


class BindError(Exception):
    """`address` cannot be listened on. reason: the system's message."""

    def __init__(self, address: Address, error: OSError) -> None:
        number = error.errno or 0  # Negative numbers are from getaddrinfo.
        self.address, self.reason = address, os.strerror(number) if number > 0 else error.strerror or str(error)
        super().__init__(f"cannot listen on {address}: {self.reason}")


def bound(addresses: Sequence[Address], backlog: int) -> tuple[list[socket.socket], tuple[Address, ...]]:
    """Non-blocking listening sockets, and the address of each. Raises BindError; then none is open."""
    sockets, where = list[socket.socket](), list[Address]()
    with ExitStack() as opened:
        for address in addresses:
            try:
                port = _bind_on_one_port(address, addresses, backlog, sockets, opened)
            except OSError as error:
                raise BindError(address, error) from error
            where.append(address if address.path else Address(host=address.host, port=port))
        opened.pop_all()
    return sockets, tuple(where)


_TRIES = 8


def _bind_on_one_port(
    address: Address, listed: Sequence[Address], backlog: int, sockets: list[socket.socket], opened: ExitStack
) -> int:
    """As `_bind`; retries if the kernel chose a port that another family uses."""
    for left in reversed(range(_TRIES)):
        found = list[socket.socket]()
        with ExitStack() as tried:
            try:
                port = _bind(address, listed, backlog, found, tried)
            except OSError as error:
                if address.port or address.path or error.errno != errno.EADDRINUSE or not left:
                    raise
                continue
            opened.push(tried.pop_all())
        sockets += found
        return port
    raise AssertionError


def _bind(
    address: Address, listed: Sequence[Address], backlog: int, sockets: list[socket.socket], opened: ExitStack
) -> int:
    """Add a socket for each place of `address`, all on one port. Returns the port."""
    port = address.port
    for family, where in _places(address, listed):
        listening = _listening(family, where if isinstance(where, str) else (where[0], port, *where[2:]), backlog)
        sockets.append(opened.enter_context(listening))
        port = port or (0 if address.path else listening.getsockname()[1])
    return port


def _places(address: Address, listed: Sequence[Address]) -> Iterator[tuple[int, str | tuple[Any, ...]]]:
    """Families and socket addresses: one for each address of the host name; IPv4 in addition to `[::]`."""
    if address.path:
        if os.path.exists(address.path) and stat.S_ISSOCK(os.stat(address.path).st_mode):
            _refuse_used(address.path)
            os.remove(address.path)
        yield socket.AF_UNIX, address.path
        return
    found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    yield from dict.fromkeys((family, where) for family, _, _, _, where in found)
    if address.host == "::" and not any(0 < other.port == address.port and _is_ipv4(other) for other in listed):
        # A separate socket instead of IPv4-mapped addresses on the IPv6 one, so that `::ffff:192.0.2.1` never occurs.
        yield socket.AF_INET, ("0.0.0.0", address.port)  # noqa: S104 - this is what the operator wrote


def _refuse_used(path: str) -> None:
    """Raises OSError, as for a port in use, if a process listens there: it would silently lose all its clients."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        if client.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _is_ipv4(address: Address) -> bool:
    """Whether it is IPv4, or a name, which may have such an address."""
    return not address.path and ":" not in address.host


def _listening(family: int, where: object, backlog: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(where)  # type: ignore[arg-type]  # as returned by getaddrinfo
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


# Limits.


_log = logging.getLogger(__name__)
LimitName = Literal["connections", "connections_per_address", "open_files"]
"""The name of a limit below `limits` in the configuration; `open_files` is that of the process."""


class ConnectionLimits:
    """Counts connections in total and by client address (for IPv6, by /64).

    Each successful `acquire` is followed by one `release` of the same peer.
    """

    def __init__(self) -> None:
        self._total = 0
        self._by_address: dict[str, int] = {}

    def acquire(self, peer: str, *, most: int, most_of_one: int | None) -> LimitName | None:
        """None, or the limit that one more connection would exceed, which then is not counted.

        most_of_one: None for a peer that represents many clients.
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
"""The shortest time between two log lines."""


class RateLimitedLog:
    """Counts what unknown clients do, and logs a summary line from time to time, without their bytes or tracebacks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float = NOTICE_SECONDS) -> None:
        self._loop, self._seconds = loop, seconds
        self._seen: dict[tuple[str, str], tuple[int, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, noun: str, fate: str, last: str) -> None:
        """Count one more `noun` with this `fate` (both have few values); `last` is its source."""
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

    trusts: addresses that represent many clients; the limit by address does not apply to them.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        trusts: Callable[[str], bool],
        rate_limited: RateLimitedLog,
        on_refused: Callable[[str], None],
    ) -> None:
        """on_refused: receives the limit that one more connection would have exceeded."""
        self.lingering = 0
        """Connections that only wait for their client to read the last response."""
        self._limits, self._trusts = limits, trusts
        self._held = ConnectionLimits()
        self._rate_limited, self._on_refused = rate_limited, on_refused

    def reconfigure(self, limits: Limits, *, trusts: Callable[[str], bool]) -> None:
        """Apply new limits to connections from now on."""
        self._limits, self._trusts = limits, trusts

    @property
    def may_linger(self) -> bool:
        """Whether a refused connection may linger, without taking room from others."""
        return self.lingering < max(self._limits.connections // _LINGERING_SHARE, 1)

    def admit(self, peer: str) -> bool:
        """Whether one more is admitted; if so, `release` must follow."""
        limits = self._limits
        of_one = None if peer == "" or self._trusts(peer) else limits.connections_per_address
        exceeded = self._held.acquire(peer, most=limits.connections, most_of_one=of_one)
        if exceeded is not None:
            self._rate_limited.count("connection", f"refused (limits.{exceeded})", peer)
            self._on_refused(exceeded)
        return exceeded is None

    def release(self, peer: str) -> None:
        self._held.release(peer)

    def tell_reset(self, peer: str) -> None:
        """Count an admitted connection that was reset because of `limits.held_bytes`."""
        self._rate_limited.count("connection", "reset (limits.held_bytes)", peer)
        self._on_refused("held_bytes")
