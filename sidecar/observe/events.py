"""Unusual events as they are told: a line in the log, a number for the metrics, and what is new for the store."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sidecar.core.units import to_the_millisecond
from sidecar.usage.anomalies import UnusualEvent, UnusualKind, network_of

_SUBJECTS: Final = 10_000
"""That are kept quiet at a time."""
_LINES: Final = 60
"""Written to the log in a minute; the next line says how many were not."""
_MINUTE: Final = 60_000_000

_Subject = tuple[UnusualKind, str, str]


class UnusualEvents:
    """Each is told once in `quiet_seconds`. `write` takes one line of ASCII for the log, and must not wait long."""

    def __init__(self, *, quiet_seconds: float, write: Callable[[str], None]) -> None:
        self.quiet_seconds = quiet_seconds
        self.counts: dict[str, int] = {kind.value: 0 for kind in UnusualKind}
        """By kind, since the start."""
        self._write = write
        self._fresh: list[UnusualEvent] = []
        self._told: OrderedDict[_Subject, int] = OrderedDict()
        self._minute, self._lines, self._unlogged = 0, 0, 0

    def tell(self, event: UnusualEvent) -> None:
        """Unless the same was told a short while ago."""
        told = self._told.get(_subject(event))
        # Not under 0: the clock may have been set back.
        if told is not None and 0 <= event.at - told < self.quiet_seconds * 1_000_000:
            return
        self.counts[event.kind] += 1
        self._remember(event)
        self._log(event)

    def restore(self, events: Iterable[UnusualEvent]) -> None:
        """What was told before a restart: neither counted nor told again."""
        for event in sorted(events, key=lambda event: event.at):
            self._remember(event)

    def fresh(self) -> Sequence[UnusualEvent]:
        """Those that were logged since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _remember(self, event: UnusualEvent) -> None:
        subject = _subject(event)
        self._told[subject] = event.at
        self._told.move_to_end(subject)
        if len(self._told) > _SUBJECTS:
            self._told.popitem(last=False)

    def _log(self, event: UnusualEvent) -> None:
        minute = event.at // _MINUTE
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        if self._lines >= _LINES:
            self._unlogged += 1
            return
        self._lines += 1
        self._fresh.append(event)
        self._write(_line(event, self._unlogged))
        self._unlogged = 0


def _subject(event: UnusualEvent) -> _Subject:
    network = network_of(event.address)
    return event.kind, event.key_id or network, network if event.kind is UnusualKind.NEW_NETWORK else ""


def _line(event: UnusualEvent, unlogged: int) -> str:
    fields = {
        "time": to_the_millisecond(event.at / 1_000_000),
        "event": "unusual",
        "kind": event.kind.value,
        "key_id": event.key_id,
        "client_address": event.address,
        "detail": event.detail,
    }
    return json.dumps({**fields, "unlogged": unlogged} if unlogged else fields, separators=(",", ":"))
