"""The `reload` and `drain` sections: how a running sidecar changes, and ends."""

from sidecar.config.sections import DrainEntry, ReloadEntry
from sidecar.config.settings import Drain, Reload
from sidecar.core.units import parse_duration


def reload_of(entry: ReloadEntry) -> Reload:
    return Reload(watch=entry.watch, interval=parse_duration(entry.interval))


def drain_of(entry: DrainEntry) -> Drain:
    return Drain(delay=parse_duration(entry.delay), timeout=parse_duration(entry.timeout))
