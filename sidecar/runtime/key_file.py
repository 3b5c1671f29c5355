"""Keys in a file: opened with the configuration's rules, and reloaded when the file changes."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sidecar.config.build.config import Config
from sidecar.config.reload import FileIdentity, identity_of, is_mounted_alone
from sidecar.config.store_url import file_path, sqlite_path
from sidecar.core.apikey import Hasher
from sidecar.core.units import Clock, counted
from sidecar.gate.compile import line_rules
from sidecar.keys.ports import Actor
from sidecar.keys.transfer.fields import LineRules
from sidecar.runtime.serving import SETTLE_SECONDS
from sidecar.runtime.tasks import Background
from sidecar.store.file import FILE, FileStore, InvalidKeyFile
from sidecar.store.store import Store
from sidecar.telemetry.metrics import Metrics

WATCH_SECONDS: Final = 1.0
"""How often the file is checked."""
_SHOWN: Final = 3
"""The number of problems that readiness shows; the log has the first, and the next start all."""
_log = logging.getLogger(__name__)


async def open_key_file(
    config: Config, hasher: Hasher, *, clock: Clock, timings: Callable[[str, float], None]
) -> FileStore:
    """The store of `file:///…`. Raises InvalidKeyFile and StoreUnavailable."""
    return await FileStore.read(
        file_path(config.store),
        usage=sqlite_path(config.store_usage) if config.store_usage else "",
        rules=rules_of(config, lambda: hasher, clock),
        clock=clock,
        timings=timings,
    )


def rules_of(config: Config, hasher: Callable[[], Hasher], clock: Clock) -> Callable[[], LineRules]:
    """The configuration's current rules for records; called in a thread, because peppers may be in files."""
    actor = Actor(name=FILE, source=file_path(config.store))
    return lambda: line_rules(config, hasher(), now=clock.micros(), actor=actor)


class KeyFileWatch(Collector):
    """Watches the file, and loads it when it changes. An invalid file does not change the keys."""

    def __init__(self, store: FileStore, *, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._seen: FileIdentity | None = None
        self._problem: InvalidKeyFile | None = None
        self._counts = {"success": 0, "failure": 0}
        self._at = clock.seconds()
        if is_mounted_alone(store.path):
            _log.warning(
                "sidecar: store: %s is mounted by itself (subPath): changes are not seen. Mount its folder instead",
                store.path,
            )

    def reconfigure(self, config: Config, hasher_of: Callable[[Config], Hasher]) -> None:
        """Reload the file, changed or not: the rules for records depend on the configuration."""
        self._store.rules, self._seen = rules_of(config, partial(hasher_of, config), self._clock), None

    async def round(self) -> None:
        """Check once. Raises StoreUnavailable, and retries the next time."""
        identity = await self._identity()
        if identity == self._seen:
            return
        # It may be written in several steps: it is read once it has stopped changing, and used if it is still
        # unchanged.
        await asyncio.sleep(SETTLE_SECONDS)
        if await self._identity() != identity:
            return
        try:
            records = await self._store.records_now()
        except InvalidKeyFile as error:
            if await self._identity() == identity:
                self._seen = identity
                self._refuse(error)
            return
        if await self._identity() == identity:
            found = await self._store.take(records)
            self._seen = identity
            self._taken(len(records), changed=bool(found))

    def remarks(self) -> Sequence[str]:
        """Where keys come from, and the place of an error in the file: only that, as its text may contain secrets."""
        kept = "" if self._store.keeps_usage else "; their use and changes are not stored"
        note = f"keys: from the file {self._store.path}, which is read-only{kept}"
        if self._problem is None:
            return [note]
        places = ", ".join(dict.fromkeys(line.partition(": ")[0] for line in self._problem.problems[:_SHOWN]))
        return [f"store: not taken, the keys before stay in force: {places}", note]

    def collect(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("sidecar_key_file_reload", "Times the file was read again.", labels=("result",))
        for result, count in self._counts.items():
            reloads.add_metric((result,), count)
        yield reloads
        yield GaugeMetricFamily(
            "sidecar_key_file_last_reload_success_timestamp_seconds",
            "When the keys in force were read, in Unix seconds.",
            value=self._at,
        )
        yield GaugeMetricFamily(
            "sidecar_key_file_last_reload_successful",
            "0 while the file is not valid, and the keys before stay in force.",
            value=self._problem is None,
        )

    async def _identity(self) -> FileIdentity:
        return await asyncio.to_thread(identity_of, self._store.path)

    def _refuse(self, error: InvalidKeyFile) -> None:
        self._problem = error
        self._counts["failure"] += 1
        _log.warning("sidecar: store: not taken, the keys before stay in force: %s", error)

    def _taken(self, records: int, *, changed: bool) -> None:
        self._problem, self._at = None, self._clock.seconds()
        self._counts["success"] += 1
        if changed:
            _log.warning("sidecar: store: %s is in force (%s)", self._store.path, counted(records, "record"))


def watch_of(store: Store, background: Background, metrics: Metrics, *, clock: Clock) -> KeyFileWatch | None:
    """Begins to watch the store's file. None if the store is not a file."""
    if not isinstance(store, FileStore):
        return None
    watch = KeyFileWatch(store, clock=clock)
    background.repeat(watch.round, WATCH_SECONDS)
    metrics.also(watch)
    return watch
