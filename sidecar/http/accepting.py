"""Accepting connections one at a time, each counted before anything is made of it.

An event loop accepts all that wait before the first can be refused, which may take every descriptor of the process. And
without one, asyncio tries again thousands of times, with a traceback each, and uvloop closes what waits without a word.
"""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from sidecar.config.fields import Address

BACKLOG: Final = 4096
"""Connections that the kernel makes before they are accepted, and so the most that come at once."""
_AT_ONCE: Final = 100
"""Accepted between two turns of the loop."""
_PAUSE_SECONDS: Final = 0.2
"""Without accepting, where no more files can be opened."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """To be made where its loop runs.

    meet: gets each connection, not blocking, and the name of its peer. on_exhausted: told that there was no descriptor
    for one that waits; accepting goes on a moment later.
    """

    def __init__(self, meet: Callable[[socket.socket, object], None], *, on_exhausted: Callable[[], None]) -> None:
        self._meet, self._on_exhausted = meet, on_exhausted
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    def start(self, address: Address, *, backlog: int = BACKLOG) -> Address:
        """Bind; gives where. Raises OSError."""
        self._sockets = bound(address, backlog)
        for listening in self._sockets:
            self._watch(listening)
        return address if address.path else Address(host=address.host, port=self._sockets[0].getsockname()[1])

    def stop(self) -> list[socket.socket]:
        """Accept no more; gives the listening sockets, which are the caller's to close."""
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
    """Close `listening`, and give the connections that the kernel has made already, which closing alone would reset."""
    accepted: list[socket.socket] = []
    for each in listening:
        each.setblocking(False)
        with suppress(OSError):  # BlockingIOError, above all: nobody waits any longer.
            while len(accepted) < BACKLOG:
                accepted.append(each.accept()[0])
        each.close()
    return accepted


def peer_of(accepted: socket.socket) -> object:
    with suppress(OSError):  # It may be gone already.
        return accepted.getpeername()
    return ""


def bound(address: Address, backlog: int) -> list[socket.socket]:
    """Listening sockets, not blocking, one for each address that the host's name has. Raises OSError."""
    if address.path:
        if os.path.exists(address.path) and stat.S_ISSOCK(os.stat(address.path).st_mode):
            os.remove(address.path)
        places: list[tuple[int, object]] = [(socket.AF_UNIX, address.path)]
    else:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        places = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    sockets: list[socket.socket] = []
    try:
        for family, where in places:
            sockets.append(_listening(family, where, backlog))
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def _listening(family: int, where: object, backlog: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(where)  # type: ignore[arg-type]  # as getaddrinfo gave it
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
