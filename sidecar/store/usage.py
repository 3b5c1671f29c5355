"""Counts of use in the SQLite store: by the hour, later by the day."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from sidecar.store.connection import Connection, StorePart
from sidecar.usage.anomalies import Anomaly, AnomalyKind
from sidecar.usage.ports import DAY, HOUR, Earlier, LastUse, UsageFilter, UsageRow

# Last uses, the networks they came from, and unusual events in the SQLite store.


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
    """`touch` of KeyRegistry, and AnomalyStore."""

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

    async def add_unusual(self, events: Sequence[Anomaly]) -> None:
        values = [(event.at, event.kind.value, event.key_id, event.address, event.detail) for event in events]
        async with self._lines.transaction("add_unusual") as line:
            await line.many(_TELL, values)

    async def unusual(self, *, limit: int, tenant: str | None = None) -> Sequence[Anomaly]:
        whose = "" if tenant is None else "WHERE tenant = :tenant"
        sql = f"SELECT kind, key_id, at, address, detail FROM unusual {whose} ORDER BY id DESC LIMIT :limit"  # noqa: S608 - no input
        values = {"limit": limit, "tenant": tenant}
        kinds = {kind.value: kind for kind in AnomalyKind}
        return [
            Anomaly(kind=kinds[kind], key_id=key_id, at=at, address=address, detail=detail)
            for kind, key_id, at, address, detail in await self._lines.read("unusual", sql, values)
            if kind in kinds
        ]


async def _networks(line: Connection, key_ids: Collection[str]) -> Mapping[str, _Known]:
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


_ADD: Final = """INSERT INTO usage (key_id, hour, route, status_class, count) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET count = count + excluded.count"""
_OLD: Final = "SELECT key_id, hour, route, status_class FROM usage WHERE hour < ? ORDER BY 2, 1, 3, 4 LIMIT ?"
_SUM: Final = f"""INSERT INTO usage_day (key_id, day, route, status_class, count)
    SELECT key_id, hour - hour % {DAY}, route, status_class, sum(count) FROM usage
    WHERE (key_id, hour, route, status_class) IN ({_OLD}) GROUP BY 1, 2, 3, 4
    ON CONFLICT DO UPDATE SET count = count + excluded.count"""  # noqa: S608 - no input
_FORGET: Final = f"DELETE FROM usage WHERE (key_id, hour, route, status_class) IN ({_OLD})"  # noqa: S608 - no input
_PRUNE: Final = (
    """DELETE FROM usage_day WHERE (key_id, day, route, status_class) IN
        (SELECT key_id, day, route, status_class FROM usage_day WHERE day < ? ORDER BY day LIMIT ?)""",
    """DELETE FROM key_network WHERE (key_id, network) IN
        (SELECT key_id, network FROM key_network WHERE seen_at < ? ORDER BY seen_at LIMIT ?)""",
    "DELETE FROM unusual WHERE id IN (SELECT id FROM unusual WHERE at < ? ORDER BY at LIMIT ?)",
)


_ALL_KEYS: Final = ""
"""In the place of a key id: the sum over all keys, kept beside them because whoever asks for it cannot wait."""


class SqliteUsage(StorePart):
    """UsageStore but for `touch`."""

    async def add_usage(self, rows: Sequence[UsageRow]) -> None:
        values = [(row.key_id, row.at, row.route, row.status_class, row.count) for row in rows]
        sums: Counter[tuple[int, str, int]] = Counter()
        for row in rows:
            sums[row.at, row.route, row.status_class] += row.count
        values += [(_ALL_KEYS, *place, count) for place, count in sums.items()]
        async with self._lines.transaction("add_usage") as line:
            await line.many(_ADD, values)

    async def usage(self, wanted: UsageFilter) -> Sequence[UsageRow]:
        sql, values = _selection(wanted)
        return [
            UsageRow(key_id=key_id, at=at, route=route, status_class=status_class, count=count)
            for key_id, at, route, status_class, count in await self._lines.read("usage", sql, values)
        ]

    async def roll_up(self, before: int, *, most: int) -> int:
        async with self._lines.transaction("roll_up") as line:
            await line.rows(_SUM, (before, most))
            await line.rows(_FORGET, (before, most))
            return await _changed(line)

    async def prune(self, before: int, *, most: int) -> int:
        pruned = 0
        async with self._lines.transaction("prune") as line:
            for statement in _PRUNE:
                await line.rows(statement, (before, most))
                pruned += await _changed(line)
        return pruned


def _selection(wanted: UsageFilter) -> tuple[str, tuple[object, ...]]:
    unit = DAY if wanted.by == "day" else HOUR
    conditions: dict[str, object] = {"at >= ?": wanted.since - wanted.since % unit, "at < ?": wanted.until}
    if wanted.key_id is not None:
        conditions["key_id = ?"] = wanted.key_id
    if wanted.key_ids is not None:
        conditions["key_id IN (SELECT value FROM json_each(?))"] = json.dumps(wanted.key_ids)
    if wanted.tenant is not None:
        conditions["key_id IN (SELECT id FROM api_key WHERE tenant = ?)"] = wanted.tenant
    if wanted.key_id is None and wanted.key_ids is None and wanted.tenant is None:
        conditions["key_id = ?"] = _ALL_KEYS
    where = " AND ".join(conditions)
    name = "''" if wanted.key_id is None and wanted.key_ids is None else "key_id"
    sql = f"""SELECT {name}, at - at % {unit}, route, status_class, sum(count) FROM (
            SELECT key_id, hour AS at, route, status_class, count FROM usage WHERE {where.replace("at ", "hour ")}
            UNION ALL
            SELECT key_id, day, route, status_class, count FROM usage_day WHERE {where.replace("at ", "day ")}
        ) GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""  # noqa: S608 - no input
    return sql, (*conditions.values(), *conditions.values())


async def _changed(line: Connection) -> int:
    [(changed,)] = await line.rows("SELECT changes()")
    return int(changed)
