"""Counts as rows that a store can keep over a restart."""

import json
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from typing import Any

from sidecar.core.model import Quota, Subject, Window
from sidecar.core.quotas import micros, period_seconds, window_of_count
from sidecar.limiter.tables import FixedTable, Table

Row = tuple[str, str, str, int]
"""Quota's name, subject (JSON), count with the way it was counted (JSON), microsecond after which it is worthless."""

Shape = tuple[str, Window, str | int, tuple[Subject, ...]]
"""What must stay for counts to keep their meaning: name, window, period, by."""

Counted = Any
"""int (fixed), Stamps (sliding) or Debt (bucket)."""

_KEPT_FROM_SECONDS = 60
_UNITS = ("minute", "hour", "day", "month")
_SECOND = 1_000_000


def shape_of(quota: Quota) -> Shape:
    return quota.name, quota.window, quota.period, quota.by


def rows_of(table: Table[Any], now: float) -> Iterator[Row]:
    """A row for each count of `table` that matters after `now`; none for quotas shorter than a minute."""
    quota = table.quota
    if period_seconds(quota) < _KEPT_FROM_SECONDS:
        return
    shape = json.dumps([quota.window, quota.period, quota.by])
    window = table.window if isinstance(table, FixedTable) else None
    for subject, counted in table.all_held().items():
        if window is not None:
            expires_at = window[1] * _SECOND
            numbers = [*window, counted]
        else:
            stamp = counted[-2] if quota.window is Window.SLIDING else counted[1]
            expires_at = stamp + micros(table.lifetime)
            numbers = list(counted)
        if expires_at > now * _SECOND:
            # A list of ints is written alike in Python and JSON; json.dumps would cost more than all the rest.
            parts = ", ".join(map(encode_basestring_ascii, subject))
            yield quota.name, f"[{parts}]", f'{{"by": {shape}, "count": {numbers}}}', expires_at


def read_row(row: Row, quotas: dict[Shape, Quota], now: float) -> tuple[Quota, tuple[str, ...], Counted] | None:
    """A quota of the row's shape (its limit unknown; kept in `quotas`), the subject and the count.

    None if malformed or past.
    """
    try:
        name, subject_json, state_json, expires_at = row
        subject, state = json.loads(subject_json), json.loads(state_json)
        quota = _quota(name, state["by"], quotas)
        counted = _count(quota, state["count"], now)
        good = bool(counted) and expires_at > now * _SECOND
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    good = good and isinstance(subject, list) and all(isinstance(part, str) for part in subject)
    return (quota, tuple(subject), counted) if good else None


def _quota(name: str, counted_by: list[Any], quotas: dict[Shape, Quota]) -> Quota:
    window, period, by = counted_by
    shape = (name, window, period, tuple(by))
    if shape not in quotas:
        if not isinstance(name, str) or not _is_period(period):
            raise ValueError(counted_by)
        subjects = tuple(Subject(part) for part in by)
        quotas[shape] = Quota(name=name, limit=0, period=period, window=Window(window), by=subjects)
    return quotas[shape]


def _count(quota: Quota, numbers: list[int], now: float) -> Counted | None:
    """The count, None if past. Raises ValueError for what no table can have written."""
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(numbers)
    if quota.window is Window.SLIDING:
        if len(numbers) % 2 or numbers[::2] != sorted(numbers[::2]):
            raise ValueError(numbers)
        return tuple(numbers)
    if quota.window is Window.BUCKET:
        owed, at = numbers
        return owed, at
    start, end, used = numbers
    _, still_counts = window_of_count(quota, (start, end), now)
    return used if still_counts else None


def _is_period(period: object) -> bool:
    return period in _UNITS if isinstance(period, str) else type(period) is int and period > 0
