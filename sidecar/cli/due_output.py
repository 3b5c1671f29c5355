"""Keys that are due, on a terminal and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidecar.cli.output import count_as_json, harmless, span
from sidecar.core.times import rfc3339
from sidecar.keys.due import Due, Why
from sidecar.keys.records import shown
from sidecar.usage.ports import UsageRow

_WORDS: Final[Mapping[Why, str]] = {"max_age": "too old since", "expires": "expires", "retires": "retires"}


def due_as_json(found: Sequence[Due], used: Sequence[UsageRow]) -> list[dict[str, Any]]:
    """Each key with `why`, `at`, `unless_used_at` where it retires sooner, and its `usage` of the last day by hour."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in used:
        rows.setdefault(row.key_id, []).append(count_as_json(row))
    return [
        {
            "why": one.why,
            "at": rfc3339(one.at),
            "unless_used_at": rfc3339(one.unless_used_at),
            "key": shown(one.key),
            "usage": rows.get(one.key.id, []),
        }
        for one in found
    ]


def due_as_text(found: Sequence[Due], used: Sequence[UsageRow], now: int) -> str:
    """A line for each key, and one for each route that it was used on in the last day."""
    if not found:
        return "No key is due."
    routes: dict[str, Counter[str]] = {}
    hours: dict[tuple[str, str], int] = {}
    for row in used:
        routes.setdefault(row.key_id, Counter())[row.route] += row.count
        hours[row.key_id, row.route] = max(row.at, hours.get((row.key_id, row.route), 0))
    lines: list[str] = []
    for one in found:
        lines.append(_line(one, now))
        for route, count in routes.get(one.key.id, Counter()).most_common():
            hour = rfc3339(hours[one.key.id, route])[:13]
            lines.append(f"    {count:,} in the last day on {harmless(route)}, the last in the hour {hour}Z")
    return "\n".join(lines)


def _line(one: Due, now: int) -> str:
    key = one.key
    used = "never used" if key.last_used_at is None else f"used {span(now - key.last_used_at)} ago"
    tenant = f" of {harmless(key.tenant)}" if key.tenant else ""
    sooner = "" if one.unless_used_at is None else f", or from {rfc3339(one.unless_used_at)} on if it stays unused"
    return f"{key.id} ({harmless(key.name)}){tenant} {_WORDS[one.why]} {rfc3339(one.at)}{sooner}; {used}"
