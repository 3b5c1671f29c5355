"""How many connections are possible, given how many files the process may open: each connection takes one."""

import logging
import os
import resource
from dataclasses import dataclass
from typing import Final

from sidecar.config.build.config import Config
from sidecar.config.document import Limits
from sidecar.http.accepting import BACKLOG
from sidecar.http.hardened import ServerLimits

_log = logging.getLogger(__name__)

_RESERVED_SHARE: Final = 8
_RESERVED_AT_LEAST: Final = 32
_RESERVED_AT_MOST: Final = 1280
"""For the store, reloads, name lookups, and the operators' listeners: two with at most 512 connections each."""
_WITHOUT_CONNECTIONS: Final = 16
"""The part of the reserve for everything except connections."""


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit: the soft limit is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.warning("sidecar: the limit of open files stays %s, below the hard limit: %s", soft, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The limits of the data and forward-auth listeners.

    lent: connections to all upstreams beyond their `max_connections`, while clients are slow; None is no limit.
    """

    limits: Limits
    lent: int | None


class Descriptors:
    """Divides the descriptors that the process may still open; see `raise_limit`.

    few: a burst of connections could use up all of them before the first is refused.
    """

    def __init__(self, config: Config, *, limit: int | None, held: int) -> None:
        """limit: files that the process may open; None is no limit."""
        self._limit = limit
        self._reserved = (
            0 if limit is None else min(_RESERVED_AT_MOST, max(_RESERVED_AT_LEAST, limit // _RESERVED_SHARE))
        )
        self._free = None if limit is None else max(limit - held - self._reserved, 0)
        self.few = self._free is not None and self._free - _wanted(config) < BACKLOG
        if self._free is not None and not self.few:
            self._free -= BACKLOG
        self._logged: tuple[int, int] | None = None

    def room(self, config: Config) -> Room:
        """The limits, with `limits.connections` lowered (and logged) if there are too few descriptors."""
        if self._free is None:
            return Room(limits=config.limits, lent=None)
        most = most_connections(config, self._free)
        wanted = config.limits.connections
        if most < wanted and self._logged != (most, wanted):
            self._logged = (most, wanted)
            _log.warning(
                "sidecar: limits.connections is %d instead of %d: the process may open only %d files (ulimit -n)",
                most, wanted, self._limit,
            )  # fmt: skip
        left = self._free - _wanted(config) if most >= wanted else 0
        return Room(limits=config.limits.with_connections(most), lent=left)

    def operators(self) -> ServerLimits:
        """The limits of the ops and admin listeners."""
        usual = ServerLimits()
        if self._free is None:
            return usual
        most = min(usual.connections, (self._reserved - _WITHOUT_CONNECTIONS) // 2)
        return ServerLimits(connections=most, connections_per_address=min(usual.connections_per_address, most))


def descriptors(config: Config) -> Descriptors:
    """The descriptors of this process, once everything except the listeners is open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Descriptors(config, limit=None if soft == resource.RLIM_INFINITY else soft, held=_held())


def most_connections(config: Config, free: int) -> int:
    """How many connections each listener can have. A client's connection may need one to the upstream."""
    listeners, upstream = _listeners(config), config.upstream_connections
    beside_a_full_upstream = (free - upstream) // listeners
    return max(beside_a_full_upstream if beside_a_full_upstream >= upstream else free // (listeners + 1), 1)


def _wanted(config: Config) -> int:
    connections = config.limits.connections
    return _listeners(config) * connections + min(connections, config.upstream_connections)


def _listeners(config: Config) -> int:
    """The listeners that `limits.connections` applies to."""
    return 1 if config.decision is None else 2


def _held() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return _WITHOUT_CONNECTIONS
