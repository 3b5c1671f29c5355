"""Counts of use in the SQLite store: by the hour, later by the day."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Final

from sidecar.store.connection import Line, StorePart
from sidecar.usage.ports import DAY, HOUR, UsageFilter, UsageRow

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


async def _changed(line: Line) -> int:
    [(changed,)] = await line.rows("SELECT changes()")
    return int(changed)
