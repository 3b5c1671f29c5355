"""Makes the admin listener's application from the parts of the process."""

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from sidecar.admin.api.routes import admin_app
from sidecar.admin.auth import Tokens
from sidecar.admin.reading import AdminDependencies
from sidecar.admin.running import KeyFile, Running
from sidecar.admin.web.app import add_pages
from sidecar.admin.web.stats import Instruments
from sidecar.config.build.config import Config
from sidecar.config.document import AdminToken
from sidecar.config.fields import Address
from sidecar.core.apikey import Hasher
from sidecar.core.model import Subject
from sidecar.core.units import Clock
from sidecar.gate.compile import key_rules, trusted_proxies
from sidecar.gate.gate import Gate
from sidecar.keys.cache import KeyFinder
from sidecar.keys.lifecycle import Lifecycle
from sidecar.limiter.memory import MemoryLimiter
from sidecar.limiter.port import Limiter
from sidecar.store.file import FileStore
from sidecar.store.store import Store
from sidecar.telemetry.refusals import Refusals
from sidecar.telemetry.reloads import Reloads

MakeGate = Callable[[Config, KeyFinder, Limiter], Gate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The rest of the process. config: the current one. clients: where the data listener is bound."""

    config: Callable[[], Config]
    store: Store
    hasher_of: Callable[[Config], Hasher]
    limiter: Limiter
    fullest: Callable[[Mapping[str, Collection[int]]], Sequence[tuple[Subject, str]]]
    """Keys and tenants that have used most of a limit, given the limits of plans."""
    make_gate: MakeGate
    counts_by_reason: Callable[[], Mapping[str, int]]
    """Refusals since the start; `counts_by_route` and `observed_by_route` as in Running."""
    counts_by_route: Callable[[], Mapping[str, Mapping[str, int]]]
    observed_by_route: Callable[[], Mapping[str, Mapping[str, int]]]
    refusals: Refusals
    problems: Callable[[], Awaitable[Sequence[str]]]
    """As in `/readyz`; so are `remarks`."""
    remarks: Callable[[], Sequence[str]]
    config_since: Callable[[], float]
    """Unix seconds."""
    reloads: Reloads | None
    """None if the configuration is never reloaded."""
    clients: Callable[[], Sequence[Address]]
    clock: Clock


def administration(process: Process) -> web.Application:
    """API and page, with the real clock and real randomness."""
    tokens = Tokens(lambda: _tokens(process.config()), MemoryLimiter(max_entries=100_000), clock=process.clock)
    app = admin_app(
        _ports(process),
        tokens,
        hosts=lambda: _hosts(process.config()),
        proxies=lambda: trusted_proxies(process.config()),
    )
    add_pages(app, _instruments(process), clock=process.clock)
    return app


def _ports(process: Process) -> AdminDependencies:
    config, store = process.config, process.store
    return AdminDependencies(
        keys=store.keys,
        statistics=store.statistics,
        audit=store.audit,
        usage=store.usage,
        anomalies=store.anomalies,
        lifecycle=lambda: Lifecycle(
            store.keys, process.hasher_of(config()), clock=process.clock, randbelow=secrets.randbelow
        ),
        config=config,
        rules=lambda: key_rules(config()),
        gate_of=lambda keys, limiter: process.make_gate(config(), keys, limiter),
        limiter=process.limiter,
        running=_running(process),
        clock=process.clock,
        randbelow=secrets.randbelow,
        key_file=KeyFile(path=store.path, keeps_usage=store.keeps_usage) if isinstance(store, FileStore) else None,
    )


def _running(process: Process) -> Running:
    return Running(
        refusals=process.refusals,
        counts_by_reason=process.counts_by_reason,
        counts_by_route=process.counts_by_route,
        observed_by_route=process.observed_by_route,
        since=process.clock.seconds(),
        fullest=process.fullest,
        problems=process.problems,
        remarks=process.remarks,
        config_since=process.config_since,
        reloads=process.reloads,
    )


def _instruments(process: Process) -> Instruments:
    return Instruments(
        clients=lambda: _url(process.config(), process.clients()),
        new_token=lambda: secrets.token_hex(16),
    )


def _tokens(config: Config) -> Sequence[AdminToken]:
    return config.admin.tokens if config.admin is not None else ()


def _hosts(config: Config) -> Sequence[str]:
    return config.admin.hosts if config.admin is not None else ()


def _url(config: Config, addresses: Sequence[Address]) -> str:
    """The data listener's URL for clients on this machine.

    Empty if no client on this machine can use it: Unix sockets only, or a PROXY header required.
    """
    address = next((each for each in addresses if not each.path), None)
    if address is None or config.proxy_protocol:
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return f"{'https' if config.tls is not None else 'http'}://{Address(host=host, port=address.port)}"
