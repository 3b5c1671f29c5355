"""Makes the snapshot that serves requests from a configuration, and swaps it as a whole on a reload.

A reload happens on request, and when the file changes.
"""

import asyncio
import ctypes
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import cast

from aiohttp import web

from sidecar.config.build.config import Config
from sidecar.config.document import UpstreamSettings
from sidecar.config.errors import ConfigError
from sidecar.config.fields import Address
from sidecar.config.reload import FileIdentity, identity_of, without_restart
from sidecar.core.client_address import TrustedProxies
from sidecar.core.observer import Observer
from sidecar.core.units import Clock
from sidecar.forward_auth.dialects import Terms
from sidecar.forward_auth.server import Snapshot as DecisionSnapshot
from sidecar.gate.compile import responses, sharing
from sidecar.gate.gate import Gate
from sidecar.http.accepting import BindError
from sidecar.http.hardened import ServerLimits, serving_app
from sidecar.keys.cache import KeyCache, KeyFinder
from sidecar.keys.grace import Grace
from sidecar.keys.ports import KeyReader
from sidecar.proxy.handler import Snapshot
from sidecar.proxy.known_heads import KnownRequests
from sidecar.proxy.server import DataServer
from sidecar.proxy.tls import ListenerCertificates, describe
from sidecar.proxy.transport import HeldBytes
from sidecar.proxy.upstream import Upstream
from sidecar.runtime.descriptors import Descriptors, Room
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.reloads import ConfigProblem, Reloads

_CLOSED_BY_SECONDS = 1.0
_log = logging.getLogger(__name__)

# Binding; a failure becomes one line that says why.


class StartError(Exception):
    """The configuration cannot be applied. The message says what to do."""


async def serve_app(
    app: web.Application, addresses: Sequence[Address], option: str, *, limits: ServerLimits, stack: AsyncExitStack
) -> tuple[Address, ...]:
    """Serve `app` until `stack` ends; returns the bound addresses. Raises StartError, which names `option`."""
    with taken_port(option):
        return await stack.enter_async_context(serving_app(app, addresses, limits=limits))


@contextmanager
def unusable_certificate(option: str) -> Iterator[None]:
    """An OSError inside becomes a StartError."""
    try:
        yield
    except OSError as error:
        raise StartError(f"cannot use the certificates of {option}: {describe(error)}") from error


@contextmanager
def taken_port(option: str) -> Iterator[None]:
    """A BindError inside becomes a StartError."""
    try:
        yield
    except BindError as error:
        raise StartError(f"cannot listen on {error.address} ({option}): {error.reason}") from error


# The snapshot that serves requests.


MakeGate = Callable[[Config, KeyFinder], Gate]


class Serving:
    """The current configuration, and the parts made from it. Create it inside the running loop. Raises StartError."""

    def __init__(
        self,
        config: Config,
        reader: KeyReader,
        *,
        make_gate: MakeGate,
        metrics: Metrics,
        descriptors: Descriptors,
        remembers: bool = True,
    ) -> None:
        """remembers: whether known requests are cached."""
        self._reader, self._make_gate, self._metrics, self._descriptors = reader, make_gate, metrics, descriptors
        self._remembers = remembers
        self.config = config
        self._room = descriptors.room(config)
        self.grace = Grace(reader, config.store_grace, time=asyncio.get_running_loop().time)
        self._cache = self._empty_cache(config)
        self._held = HeldBytes(config.limits.held_bytes)
        self._held.on_relieved = _return_memory_soon
        self._upstreams = {
            name: self._upstream_of(name, settings, config, self._room)
            for name, settings in config.every_upstream.items()
        }
        self._snapshot = self._snapshot_of(config, make_gate(config, self._cache))
        self._certificates = _certificates_of(config)
        self._data: DataServer | None = None
        self._declare_series()
        metrics.watch(key_cache=self._cache_results)

    def data_server(self, observer: Observer, clock: Clock) -> DataServer:
        """The data listener, which follows the configuration from now on."""
        self._data = DataServer(
            self._snapshot,
            observer=observer,
            clock=clock,
            tls=None if self._certificates is None else self._context,
            few_files=self._descriptors.few,
            proxy_protocol=self.config.proxy_protocol,
            held=self._held,
        )
        return self._data

    async def answers(self) -> bool:
        """Whether the data listener responds, or does not exist yet."""
        return self._data is None or await self._data.answers()

    async def check(self) -> None:
        """Report to the log and the metrics if the data listener does not respond."""
        if not await self.answers():
            self._metrics.internal_errors += 1
            _log.error("sidecar: the data listener does not answer; /livez is 503 until it does")

    def decisions(self) -> DecisionSnapshot:
        """The forward-auth listener's snapshot of the current configuration."""
        return DecisionSnapshot(
            gate=self._snapshot.gate,
            responses=self._snapshot.responses,
            terms=Terms(self.config),
            limits=self._room.limits,
            id_header=self._snapshot.id_header,
            sharing=self._snapshot.sharing,
        )

    async def reconfigure(self, wanted: Config) -> Sequence[str]:
        """Use `wanted` from the next request on. Returns the options that need a restart.

        Raises StartError; then nothing has changed. Running requests keep the snapshot that they began with, and its
        upstreams' connections.
        """
        config, kept = without_restart(self.config, wanted)
        cache = self._cache_for(config)
        gate = await asyncio.to_thread(self._make_gate, config, cache)
        room = self._descriptors.room(config)
        upstreams = self._upstreams_for(config, room)
        certificates = self._certificates if config.tls == self.config.tls else _certificates_of(config)
        # From here on nothing is awaited, so that no request sees a partial change.
        self._swap_cache(cache)
        self.grace.reconfigure(config.store_grace)
        self.config, self._certificates, self._room = config, certificates, room
        self._upstreams = upstreams
        for upstream in upstreams.values():
            upstream.reconfigure(_lent(config, room))
        self._snapshot = self._snapshot_of(config, gate)
        if self._data is not None:
            self._data.reconfigure(self._snapshot)
        self._declare_series()
        return kept

    def close(self) -> None:
        for upstream in self._upstreams.values():
            upstream.close()

    def _cache_for(self, config: Config) -> KeyCache:
        """A new cache if the rules of keys changed.

        Cached entries were checked by the old rules, and are not checked again.
        """
        if config.keys == self.config.keys:
            return self._cache
        return self._empty_cache(config)

    def _empty_cache(self, config: Config) -> KeyCache:
        return KeyCache(self._reader, size=config.keys.cache_size, grace=self.grace)

    def _swap_cache(self, new: KeyCache) -> None:
        """Keep the counts of the old cache, because counters must not decrease."""
        old, self._cache = self._cache, new
        new.hits, new.misses, new.negative_hits = old.hits, old.misses, old.negative_hits

    def _snapshot_of(self, config: Config, gate: Gate) -> Snapshot:
        return Snapshot(
            gate=gate,
            responses=responses(config),
            upstream=self._upstreams[None],
            upstreams={name: upstream for name, upstream in self._upstreams.items() if name is not None},
            limits=self._room.limits,
            trusts=TrustedProxies(config.trusted_proxies, b"").trusts,
            known=KnownRequests(gate) if self._remembers else None,
            id_header=config.identity.request_id.encode(),
            sharing=sharing(config),
        )

    def _upstreams_for(self, config: Config, room: Room) -> dict[str | None, Upstream]:
        """Unchanged upstreams are kept, with their connections."""
        before = self.config.every_upstream
        return {
            name: self._upstreams[name]
            if before.get(name) == settings
            else self._upstream_of(name, settings, config, room)
            for name, settings in config.every_upstream.items()
        }

    def _upstream_of(self, name: str | None, settings: UpstreamSettings, config: Config, room: Room) -> Upstream:
        with unusable_certificate("upstream.tls" if name is None else f"upstreams.{name}.tls"):
            loop = asyncio.get_running_loop()
            return Upstream(settings, loop=loop, most_lent=_lent(config, room), held=self._held)

    def _context(self) -> ssl.SSLContext:
        """TLS is never turned on or off in a running process, so there are certificates if there were any."""
        return cast(ListenerCertificates, self._certificates).current()

    def _declare_series(self) -> None:
        self._metrics.declare_series(
            routes=(route.name for route in self.config.routes),
            quotas=self.config.quotas,
            upstreams=self.config.upstreams,
        )

    def _cache_results(self) -> Mapping[str, int]:
        cache = self._cache
        return {"hit": cache.hits, "miss": cache.misses, "negative_hit": cache.negative_hits}


def _lent(config: Config, room: Room) -> int | None:
    """Each upstream's share."""
    return None if room.lent is None else room.lent // len(config.every_upstream)


def _return_memory_soon() -> None:
    """Once the slow connections are closed. In a thread, because it can take 40 ms."""
    loop = asyncio.get_running_loop()
    loop.call_later(_CLOSED_BY_SECONDS, loop.run_in_executor, None, _return_memory)


def _return_memory() -> None:
    """Return freed memory to the system with `malloc_trim`, because glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _certificates_of(config: Config) -> ListenerCertificates | None:
    if config.tls is None:
        return None
    with unusable_certificate("tls"):
        return ListenerCertificates(config.tls)


SETTLE_SECONDS = 0.1
"""A changed file is read once it has not changed for this long: it may be written in several steps."""


class Reloader:
    """Reads with `load` (which raises ConfigError, and may block) and passes the result to `reconfigure`.

    adopt: applies the configuration, or raises StartError and changes nothing; returns the options that need a restart.
    running: the current configuration.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        reconfigure: Callable[[Config], Awaitable[Sequence[str]]],
        running: Callable[[], Config],
        *,
        reloads: Reloads,
        clock: Clock,
    ) -> None:
        self._load, self._adopt, self._running = load, reconfigure, running
        self._reloads, self._clock = reloads, clock
        self._asked = asyncio.Event()
        self._seen = identity_of(running().path)

    def ask(self) -> None:
        """Request a reload soon, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        while True:
            if await self._is_asked() or await self._has_changed():
                await self._reload()

    async def _is_asked(self) -> bool:
        """Whether a reload was requested within an interval; if the file is not watched, only that ends the wait."""
        rules = self._running().reload
        with suppress(TimeoutError):
            async with asyncio.timeout(rules.interval if rules.watch else None):
                await self._asked.wait()
        return self._asked.is_set()

    async def _has_changed(self) -> bool:
        identity = await self._identity()
        if identity == self._seen:
            return False
        await self._settled(identity)
        return True

    async def _settled(self, identity: FileIdentity) -> FileIdentity:
        """The file's identity once it has stopped changing: half a file may be valid, with another meaning."""
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            before, identity = identity, await self._identity()
            if identity == before:
                return identity

    async def _identity(self) -> FileIdentity:
        return await asyncio.to_thread(identity_of, self._running().path)

    async def _read(self) -> Config:
        """Read the file, and again if it changed meanwhile."""
        while True:
            # Taken before reading, so that a change during the read is noticed.
            self._seen = await self._identity()
            failed: ConfigError | None = None
            try:
                wanted = await asyncio.to_thread(self._load)
            except ConfigError as error:
                failed = error
            if (identity := await self._identity()) != self._seen:
                await self._settled(identity)
            elif failed is not None:
                raise failed
            else:
                return wanted

    async def _reload(self) -> None:
        self._asked.clear()
        try:
            wanted = await self._read()
            kept = await self._adopt(wanted)
        except ConfigError as error:
            self._refused(ConfigProblem(problem.where, problem.text) for problem in error.problems)
        except StartError as error:
            self._refused([ConfigProblem("", str(error))])
        except Exception as error:  # A failed reload must not be the last.
            self._refused([ConfigProblem("", f"internal error: {type(error).__name__}")])
        else:
            self._reloads.taken(wanted.path, wanted.sha256, at=self._clock.seconds(), kept=kept)

    def _refused(self, problems: Iterable[ConfigProblem]) -> None:
        self._reloads.refused(list(problems), at=self._clock.seconds())
