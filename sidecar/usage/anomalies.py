"""Unusual uses of keys: their kinds, their limits, their log, and how they are detected."""

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidecar.core.errors import Reason, status_of
from sidecar.core.units import Clock, counted, to_the_millisecond

_V4_HOST, _V6_HOST = 8, 80
_UNSHOWN = re.compile(r"[^ -~]")
AGENT_CHARS = 200
"""Characters of a user agent that are kept."""


class AnomalyKind(StrEnum):
    """A closed set, used both as metric label and as log field."""

    UNUSED_KEY = "unused_key"
    """A key was used after a long time without use."""
    NEW_NETWORK = "new_network"
    """A key was used from a network that it never came from."""
    REFUSALS = "refusals"
    """One key, or one network without a known key, was refused many times."""
    REVOKED_KEY = "revoked_key"
    """A revoked key is still used."""
    RETIRED_KEY = "retired_key"
    """A replaced key is still used."""
    OLD_KEY = "old_key"
    """A key is older than allowed without rotation. Reported once per key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """An event that someone may want to investigate."""

    kind: AnomalyKind
    key_id: str | None
    """None if no stored key was involved."""
    at: int
    """Microseconds."""
    address: str
    """The client's address; empty for a Unix socket."""
    detail: str
    """Readable text: `first use from 203.0.113.0/24`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """The limits beyond which a use is unusual. None: never. The defaults are in the configuration's document."""

    unused_seconds: float | None
    new_network: bool
    refusals: int | None
    """Refusals of one key, or of one network, within `refusals_seconds`."""
    refusals_seconds: float
    repeat_after_seconds: float
    """The same event is not reported again within this time."""


def network_of(address: str) -> str:
    """The /24 or, of IPv6, the /48 of the address, as `203.0.113.0/24`; empty if it is not an address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return f"{IPv6Address(int(parsed) >> _V6_HOST << _V6_HOST)}/{128 - _V6_HOST}"
        parsed = parsed.ipv4_mapped
    return f"{IPv4Address(int(parsed) >> _V4_HOST << _V4_HOST)}/{32 - _V4_HOST}"


def agent_text(value: bytes) -> str:
    """A User-Agent field as stored and shown: printable ASCII, at most `AGENT_CHARS`."""
    return _UNSHOWN.sub("?", value[:AGENT_CHARS].decode("latin-1"))


# Unusual uses are detected afterwards, from totals, so that no request waits for this.


# Each unusual event becomes a log line, a count in the metrics, and a row in the store.


_SUBJECTS: Final = 10_000
"""Most events that are suppressed at a time."""
_LINES: Final = 60
"""Most lines in a minute; the next line says how many were left out."""
_MINUTE: Final = 60_000_000

_Subject = tuple[AnomalyKind, str, str]


class AnomalyLog:
    """Reports each event once in `repeat_after_seconds`. `write` takes one line of ASCII, and must not wait long."""

    def __init__(self, *, repeat_after_seconds: float, write: Callable[[str], None]) -> None:
        self.repeat_after_seconds = repeat_after_seconds
        self.counts: dict[str, int] = {kind.value: 0 for kind in AnomalyKind}
        """By kind, since the start."""
        self._write = write
        self._fresh: list[Anomaly] = []
        self._reported: OrderedDict[_Subject, int] = OrderedDict()
        self._minute, self._lines, self._unlogged = 0, 0, 0

    def report(self, event: Anomaly) -> None:
        """Report an event, unless the same one was reported recently."""
        if self._is_quiet(_subject(event), event.at):
            return
        self.counts[event.kind] += 1
        self._remember(event)
        if self._log(event):
            self._fresh.append(event)

    def announce(self, event: Anomaly) -> None:
        """Count and log an event that is already stored."""
        self.counts[event.kind] += 1
        self._log(event)

    def restore(self, events: Iterable[Anomaly]) -> None:
        """Remember events from before a restart: they are neither counted nor reported again."""
        for event in sorted(events, key=lambda event: event.at):
            self._remember(event)

    def fresh(self) -> Sequence[Anomaly]:
        """The events logged since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _is_quiet(self, subject: _Subject, at: int) -> bool:
        reported = self._reported.get(subject)
        # A batch contains a key several times, by route and address, and not in order of time: slightly earlier events
        # are suppressed, too. Much earlier ones mean that the clock was set back.
        return reported is not None and abs(at - reported) < self.repeat_after_seconds * 1_000_000

    def _remember(self, event: Anomaly) -> None:
        subject = _subject(event)
        self._reported[subject] = event.at
        self._reported.move_to_end(subject)
        if len(self._reported) > _SUBJECTS:
            self._reported.popitem(last=False)

    def _log(self, event: Anomaly) -> bool:
        """Log the event. Returns whether there was room for its line."""
        minute = event.at // _MINUTE
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        if self._lines >= _LINES:
            self._unlogged += 1
            return False
        self._lines += 1
        self._write(_line(event, self._unlogged))
        self._unlogged = 0
        return True


def _subject(event: Anomaly) -> _Subject:
    network = network_of(event.address)
    return event.kind, event.key_id or network, network if event.kind is AnomalyKind.NEW_NETWORK else ""


def _line(event: Anomaly, unlogged: int) -> str:
    fields = {
        "time": to_the_millisecond(event.at / 1_000_000),
        "event": "unusual",
        "kind": event.kind.value,
        "key_id": event.key_id,
        "client_address": event.address,
        "detail": event.detail,
    }
    return json.dumps({**fields, "unlogged": unlogged} if unlogged else fields, separators=(",", ":"))


"""Keys and networks whose refusals are counted at a time."""
_STATUSES: Final = frozenset({401, 403, 429})
"""Reasons of refusals caused by a credential or by its absence."""
_DEAD_KEYS: Final = {Reason.REVOKED_KEY: AnomalyKind.REVOKED_KEY, Reason.RETIRED_KEY: AnomalyKind.RETIRED_KEY}
_SPANS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


class AnomalyDetector:
    """Compares uses and refusals with `limits`, and reports what is unusual."""

    def __init__(self, limits: Unusual, *, clock: Clock, write: Callable[[str], None]) -> None:
        """`write` as in AnomalyLog."""
        self.events = AnomalyLog(repeat_after_seconds=limits.repeat_after_seconds, write=write)
        self._limits = limits
        self._clock = clock
        self._window = 0
        self._refusals: dict[str, Counter[Reason]] = {}

    def reconfigure(self, limits: Unusual) -> None:
        """Use these limits from now on."""
        self._limits = limits
        self.events.repeat_after_seconds = limits.repeat_after_seconds

    def used(
        self, key_id: str, at: int, address: str, *, idle_since: int, used_before: bool, new_networks: Sequence[str]
    ) -> None:
        """A key was used, last at `at` (microseconds); before that it was idle since its last use or its issue.

        `new_networks` are those from which it was never used before.
        """
        limits, idle = self._limits, (at - idle_since) // 1_000_000
        if limits.unused_seconds is not None and idle >= limits.unused_seconds:
            before = "its last use" if used_before else "it was issued, and never before"
            self._report(AnomalyKind.UNUSED_KEY, (key_id, at, address), f"used {_span(idle)} after {before}")
        if limits.new_network and new_networks:
            detail = f"first use from {', '.join(new_networks)}"
            self._report(AnomalyKind.NEW_NETWORK, (key_id, at, address), detail)

    def refused(self, key_id: str, at: int, address: str, *, network: str, reason: Reason, count: int) -> None:
        """`count` requests were refused, the last at `at`. `key_id` is empty where no key was recognised."""
        who, place = (key_id, at, address), network or "a Unix socket"
        if key_id and reason in _DEAD_KEYS:
            self._report(_DEAD_KEYS[reason], who, f"still tried, from {place}")
        limit = self._limits.refusals
        if limit is None or status_of(reason) not in _STATUSES:
            return
        counts = self._counted(key_id or network)
        counts[reason] += count
        if counts.total() >= limit:
            span, most = _span(int(self._limits.refusals_seconds)), counts.most_common(1)[0][0]
            detail = f"{counts.total()} refusals within {span}, last from {place}, most of them {most}"
            self._report(AnomalyKind.REFUSALS, who, detail)

    def _counted(self, subject: str) -> Counter[Reason]:
        """Refusals of a key or a network in the current window."""
        window = int(self._clock.seconds() // self._limits.refusals_seconds)
        if window != self._window:
            self._window = window
            self._refusals.clear()
        found = self._refusals.get(subject)
        if found is None:
            found = Counter()
            if len(self._refusals) < _SUBJECTS:
                self._refusals[subject] = found
        return found

    def _report(self, kind: AnomalyKind, who: tuple[str, int, str], detail: str) -> None:
        key_id, at, address = who
        self.events.report(Anomaly(kind=kind, key_id=key_id or None, at=at, address=address, detail=detail))


def _span(seconds: int) -> str:
    size, unit = next((size, unit) for size, unit in _SPANS if seconds >= size or size == 1)
    return counted(seconds // size, unit)
