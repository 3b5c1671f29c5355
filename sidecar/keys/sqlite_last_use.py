"""Last uses, the networks they came from, and unusual events in the SQLite store."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from sidecar.store.connection import Line, StorePart
from sidecar.usage.anomalies import UnusualEvent, UnusualKind
from sidecar.usage.ports import DAY, Earlier, LastUse

MOST_NETWORKS: Final = 64
"""Of one key, so many are remembered; a key that has so many is at home everywhere."""

_TOUCH: Final = """UPDATE api_key SET last_used_at = ?1, last_used_address = ?2, last_used_agent = ?3
    WHERE id = ?4 AND (last_used_at IS NULL OR last_used_at < ?1)"""
_SEEN: Final = "INSERT OR REPLACE INTO key_network (key_id, network, seen_at) VALUES (?, ?, ?)"
_TELL: Final = """INSERT INTO unusual (at, kind, key_id, address, detail, tenant)
    VALUES (?1, ?2, ?3, ?4, ?5, (SELECT tenant FROM api_key WHERE id = ?3))"""
_KEYS: Final = "SELECT id, last_used_at, created_at FROM api_key WHERE id IN (SELECT value FROM json_each(?))"
_NETWORKS: Final = "SELECT key_id, network, seen_at FROM key_network WHERE key_id IN (SELECT value FROM json_each(?))"

_Known = dict[str, int]
"""Networks of a key, and when each was seen (to the day) in microseconds."""


class SqliteLastUse(StorePart):
    """`touch` of KeyRegistry, and UnusualStore."""

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        async with self._lines.transaction("touch") as line:
            stored = await line.rows(_KEYS, (json.dumps(list(last_uses)),))
            known = await _networks(line, last_uses)
            rows = [(use.at, use.address or None, use.agent or None, key_id) for key_id, use in last_uses.items()]
            await line.many(_TOUCH, rows)
            seen = [row for key_id, _, _ in stored for row in _seen(key_id, last_uses[key_id], known[key_id])]
            await line.many(_SEEN, seen)
        return {
            key_id: Earlier(used_at=used_at, created_at=created_at, new_networks=_new(last_uses[key_id], known[key_id]))
            for key_id, used_at, created_at in stored
        }

    async def add_unusual(self, events: Sequence[UnusualEvent]) -> None:
        values = [(event.at, event.kind.value, event.key_id, event.address, event.detail) for event in events]
        async with self._lines.transaction("add_unusual") as line:
            await line.many(_TELL, values)

    async def unusual(self, *, limit: int, tenant: str | None = None) -> Sequence[UnusualEvent]:
        whose = "" if tenant is None else "WHERE tenant = :tenant"
        sql = f"SELECT kind, key_id, at, address, detail FROM unusual {whose} ORDER BY id DESC LIMIT :limit"  # noqa: S608 - no input
        values = {"limit": limit, "tenant": tenant}
        kinds = {kind.value: kind for kind in UnusualKind}
        return [
            UnusualEvent(kind=kinds[kind], key_id=key_id, at=at, address=address, detail=detail)
            for kind, key_id, at, address, detail in await self._lines.read("unusual", sql, values)
            if kind in kinds
        ]


async def _networks(line: Line, key_ids: Collection[str]) -> Mapping[str, _Known]:
    known: dict[str, _Known] = {key_id: {} for key_id in key_ids}
    for key_id, network, seen_at in await line.rows(_NETWORKS, (json.dumps(list(key_ids)),)):
        known[key_id][network] = seen_at
    return known


def _new(use: LastUse, known: _Known) -> tuple[str, ...]:
    if not known or len(known) >= MOST_NETWORKS:
        return ()
    return tuple(network for network in use.networks if network not in known)


def _seen(key_id: str, use: LastUse, known: _Known) -> Iterator[tuple[str, str, int]]:
    """Rows to write: of new networks while there is room, of known ones once a day."""
    room = MOST_NETWORKS - len(known)
    for network in use.networks:
        if network not in known:
            room -= 1
        if use.at - known.get(network, 0) >= DAY and (network in known or room >= 0):
            yield key_id, network, use.at
