"""Where keys are stored, and where quotas are counted."""

from types import MappingProxyType
from typing import Annotated

from msgspec import Meta

from sidecar.config.decoder import made
from sidecar.config.errors import Path, Report
from sidecar.config.fields import (
    Duration,
    FilePath,
    LimiterUrl,
    Namespace,
    Replica,
    Store,
    Timeout,
    UsageStore,
    left_out,
    seconds,
)
from sidecar.config.policy import Entry
from sidecar.config.store_url import is_file, is_postgresql
from sidecar.limiter.redis.url import RedisUrl
from sidecar.limiter.remote import Outage
from sidecar.limiter.tables import DEFAULT_ENTRIES


class StoreSettings(Entry, frozen=True, kw_only=True):
    """Where keys are stored, and how long those that were seen go on while the store does not answer (seconds)."""

    examples = MappingProxyType({"url": "`url: sqlite:keys.db`"})
    url: Store
    usage: UsageStore = left_out("")
    """Of keys in a file: where their use, changes and quotas are kept; empty for nowhere."""
    replica: Replica = left_out("")
    """Of keys in PostgreSQL: a standby where they are looked up; empty for the primary."""
    grace: Duration = seconds("0s")


_GRACE_SECONDS = (1, 3600)


def store_of(written: str | StoreSettings, path: Path, report: Report) -> StoreSettings:
    """A URL alone is the URL with every default."""
    settings = StoreSettings(url=written) if isinstance(written, str) else written
    least, most = _GRACE_SECONDS
    if settings.grace and not least <= settings.grace <= most:
        report.problem((*path, "grace"), "must be 0s, or between 1s and 1h: a revoked key may go on for as long")
    if settings.usage and not is_file(settings.url):
        report.doubt((*path, "usage"), "is only for keys in a file: any other store keeps usage itself")
    if settings.replica and not is_postgresql(settings.url):
        report.doubt((*path, "replica"), "is only for keys in PostgreSQL: this store has none")
    return settings


def replica_of(settings: StoreSettings | None) -> str:
    """Where keys are looked up, if not at the store itself."""
    return settings.replica if settings is not None and is_postgresql(settings.url) else ""


class LimiterSettings(Entry, frozen=True, kw_only=True):
    """Where quotas are counted, and how many counts (one for each quota and subject) memory keeps.

    The rest is for a Redis alone: it answers within `timeout` seconds, or `outage` decides.
    """

    url: LimiterUrl = "memory"
    entries: Annotated[int, Meta(ge=1000, le=10**8)] = DEFAULT_ENTRIES
    timeout: Timeout = seconds("50ms")
    outage: Outage = "local"
    """By this replica's share of each quota, by none (open), or 503 (closed)."""
    replicas: Annotated[int, Meta(ge=1, le=100_000)] = 1
    """Sidecars that share the counts: each one's share is a limit divided by them."""
    namespace: Namespace = "sidecar"
    """Sidecars with the same one count together."""
    ca: FilePath = left_out("")
    """PEM file of the authorities of a rediss:// server; empty: the system's."""


def limiter_of(written: str | RedisUrl | LimiterSettings, path: Path, report: Report) -> LimiterSettings:
    """A URL alone is the URL with every default."""
    settings = written if isinstance(written, LimiterSettings) else LimiterSettings(url=written)
    if settings.ca and (isinstance(settings.url, str) or not settings.url.tls):
        report.problem((*path, "ca"), "is for a rediss:// server alone")
    if settings.url == "memory" and settings.replicas > 1:
        report.doubt(
            (*path, "replicas"), "is only for a Redis: in memory, each sidecar counts alone up to the whole limit"
        )
    return settings


OneStore = Annotated[StoreSettings, made(store_of, Store, StoreSettings)]
OneLimiter = Annotated[LimiterSettings, made(limiter_of, LimiterUrl, LimiterSettings)]
