"""What is counted: uses by hour and day, the last use of each key, unusual events, and quota states."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from sidecar.keys.ports import QuotaRow
from sidecar.store.connection import Connection, Database
from sidecar.usage.anomalies import Anomaly, AnomalyKind
from sidecar.usage.recorder import DAY, HOUR, Earlier, LastUse, UsageFilter, UsageRow, UsageTotal

# The last use of each key, and the networks that it came from.


MOST_NETWORKS: Final = 64
"""Networks remembered per key; a key with this many has no usual network."""

_TOUCH: Final = """UPDATE api_key SET last_used_at = ?, last_used_address = ?, last_used_agent = ?
    WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ? OR last_used_at > ?)"""
"""A time in the future was written before the clock was set back."""
_REMEMBER_NETWORK: Final = """INSERT INTO key_network (key_id, network, seen_at) VALUES (?, ?, ?)
    ON CONFLICT (key_id, network) DO UPDATE SET seen_at = excluded.seen_at"""

_KnownNetworks = dict[str, int]
"""Networks of a key, and when each was last used (to the day) in microseconds."""


def _among(number: int) -> str:
    return f"({', '.join('?' * number)})"


async def _known_networks(connection: Connection, key_ids: Collection[str]) -> Mapping[str, _KnownNetworks]:
    known: dict[str, _KnownNetworks] = {key_id: {} for key_id in key_ids}
    sql = f"SELECT key_id, network, seen_at FROM key_network WHERE key_id IN {_among(len(key_ids))}"  # noqa: S608 - no input
    for key_id, network, seen_at in await connection.fetch(sql, tuple(key_ids)):
        known[key_id][network] = seen_at
    return known


def _new_networks(use: LastUse, known: _KnownNetworks) -> tuple[str, ...]:
    if not known or len(known) >= MOST_NETWORKS:
        return ()
    return tuple(network for network in use.networks if network not in known)


def _network_rows(key_id: str, use: LastUse, known: _KnownNetworks) -> Iterator[tuple[str, str, int]]:
    """Rows to write: of new networks while there is room, of known ones once a day."""
    room = MOST_NETWORKS - len(known)
    for network in use.networks:
        if network not in known:
            room -= 1
        if use.at - known.get(network, 0) >= DAY and (network in known or room >= 0):
            yield key_id, network, use.at


# Counts of use: by the hour, later by the day.


_COUNTED: Final = "key_id, hour, route, status_class, reason"
_COUNTED_BY_DAY: Final = "key_id, day, route, status_class, reason"
_ADD: Final = f"""INSERT INTO usage ({_COUNTED}, count) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT ({_COUNTED}) DO UPDATE SET count = usage.count + excluded.count"""  # noqa: S608 - no input
_OLD: Final = f"SELECT {_COUNTED} FROM usage WHERE hour < ? ORDER BY 2, 1, 3, 4, 5 LIMIT ?"  # noqa: S608 - no input
_SUM: Final = f"""INSERT INTO usage_day ({_COUNTED_BY_DAY}, count)
    SELECT key_id, hour - hour % {DAY}, route, status_class, reason, sum(count) FROM usage
    WHERE ({_COUNTED}) IN ({_OLD}) GROUP BY 1, 2, 3, 4, 5
    ON CONFLICT ({_COUNTED_BY_DAY}) DO UPDATE SET count = usage_day.count + excluded.count"""  # noqa: S608 - no input
_FORGET: Final = f"DELETE FROM usage WHERE ({_COUNTED}) IN ({_OLD}) RETURNING 1"  # noqa: S608 - no input
_PRUNE: Final = (
    f"""DELETE FROM usage_day WHERE ({_COUNTED_BY_DAY}) IN
        (SELECT {_COUNTED_BY_DAY} FROM usage_day WHERE day < ? ORDER BY day LIMIT ?) RETURNING 1""",  # noqa: S608 - no input
    """DELETE FROM key_network WHERE (key_id, network) IN
        (SELECT key_id, network FROM key_network WHERE seen_at < ? ORDER BY seen_at LIMIT ?) RETURNING 1""",
    # Events that are reported once per key are kept, or they would be reported again.
    f"""DELETE FROM unusual WHERE id IN
        (SELECT id FROM unusual WHERE at < ? AND kind <> '{AnomalyKind.OLD_KEY}' ORDER BY at LIMIT ?) RETURNING 1""",  # noqa: S608 - no input
)

_ALL_KEYS: Final = ""
"""Instead of a key id: the sum over all keys, stored because computing it takes too long."""
_TOTALS: Final = f"""SELECT key_id, route, reason, CAST(sum(in_day) AS BIGINT), CAST(max(in_hour) AS BIGINT),
        CAST(max(in_day) AS BIGINT)
    FROM (SELECT key_id, route, reason, at - at % {DAY} AS day, sum(count) AS in_day, max(count) AS in_hour
        FROM (SELECT key_id, route, reason, hour AS at, sum(count) AS count FROM usage
            WHERE key_id IN {{keys}} AND hour >= ? AND hour < ? GROUP BY key_id, route, reason, hour
            UNION ALL
            SELECT key_id, route, reason, day, sum(count) FROM usage_day
            WHERE key_id IN {{keys}} AND day >= ? AND day < ? GROUP BY key_id, route, reason, day
        ) AS by_hour GROUP BY key_id, route, reason, at - at % {DAY}
    ) AS by_day GROUP BY key_id, route, reason ORDER BY key_id, route, reason"""  # noqa: S608 - no input


class StoredUsage:
    """Each call is one transaction. Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def touch(self, last_uses: Mapping[str, LastUse]) -> Mapping[str, Earlier]:
        """As UsageSink.touch."""
        if not last_uses:
            return {}
        sql = f"SELECT id, last_used_at, created_at FROM api_key WHERE id IN {_among(len(last_uses))}"  # noqa: S608 - no input
        async with self._database.transaction("touch") as connection:
            stored = await connection.fetch(sql, tuple(last_uses))
            known = await _known_networks(connection, last_uses)
            now = self._database.now()
            times = [min(use.at, now) for use in last_uses.values()]
            rows = [
                (at, use.address or None, use.agent or None, key_id, at, now)
                for at, (key_id, use) in zip(times, last_uses.items(), strict=True)
            ]
            await connection.execute_many(_TOUCH, rows)
            networks = [
                row for key_id, _, _ in stored for row in _network_rows(key_id, last_uses[key_id], known[key_id])
            ]
            await connection.execute_many(_REMEMBER_NETWORK, networks)
        return {
            key_id: Earlier(
                used_at=used_at, created_at=created_at, new_networks=_new_networks(last_uses[key_id], known[key_id])
            )
            for key_id, used_at, created_at in stored
        }

    async def add(self, rows: Sequence[UsageRow]) -> None:
        """As UsageSink.add."""
        values = [(row.key_id, row.at, row.route, row.status_class, row.reason, row.count) for row in rows]
        sums: Counter[tuple[int, str, int, str]] = Counter()
        for row in rows:
            sums[row.at, row.route, row.status_class, row.reason] += row.count
        values += [(_ALL_KEYS, *place, count) for place, count in sums.items()]
        async with self._database.transaction("add_usage") as connection:
            await connection.execute_many(_ADD, values)

    async def counts(self, wanted: UsageFilter) -> Sequence[UsageRow]:
        """The matching counts, in order of key, time, route, class and, if asked for, reason."""
        sql, values = _selection(wanted)
        return [
            UsageRow(key_id=key_id, at=at, route=route, status_class=status_class, count=count, reason=reason)
            for key_id, at, route, status_class, reason, count in await self._database.read("usage", sql, values)
        ]

    async def totals(self, key_ids: Collection[str], *, since: int, until: int) -> Sequence[UsageTotal]:
        """Totals of each key, from the hour or day that contains `since` up to `until` (microseconds).

        An empty id stands for all keys together. Sorted by key, route and reason.
        """
        if not key_ids:
            return ()
        sql = _TOTALS.format(keys=_among(len(key_ids)))
        values = (*key_ids, since - since % HOUR, until, *key_ids, since - since % DAY, until)
        return [
            UsageTotal(key_id=key_id, route=route, reason=reason, count=count, most_in_hour=hour, most_in_day=day)
            for key_id, route, reason, count, hour, day in await self._database.read("usage", sql, values)
        ]

    async def roll_up(self, before: int, most: int) -> int:
        """Merge hourly counts before `before` into daily counts, at most `most` rows. Returns how many there were."""
        async with self._database.transaction("roll_up") as connection:
            await connection.execute(_SUM, (before, most))
            return len(await connection.fetch(_FORGET, (before, most)))

    async def prune(self, before: int, most: int) -> int:
        """Delete counts, networks and unusual events before `before`, at most `most` of each. Returns how many."""
        pruned = 0
        async with self._database.transaction("prune") as connection:
            for statement in _PRUNE:
                pruned += len(await connection.fetch(statement, (before, most)))
        return pruned


def _selection(wanted: UsageFilter) -> tuple[str, tuple[object, ...]]:
    unit = DAY if wanted.by == "day" else HOUR
    conditions, values = _conditions(wanted, unit)
    where = " AND ".join(conditions)
    name = "''" if wanted.key_id is None and wanted.key_ids is None else "key_id"
    reason = "reason" if wanted.with_reasons else "''"
    sql = f"""SELECT {name}, at - at % {unit}, route, status_class, {reason}, CAST(sum(count) AS BIGINT) FROM (
            SELECT key_id, hour AS at, route, status_class, reason, count FROM usage
            WHERE {where.replace("at ", "hour ")}
            UNION ALL
            SELECT key_id, day, route, status_class, reason, count FROM usage_day
            WHERE {where.replace("at ", "day ")}
        ) AS counted GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"""  # noqa: S608 - no input
    return sql, (*values, *values)


def _conditions(wanted: UsageFilter, unit: int) -> tuple[list[str], list[object]]:
    conditions = ["at >= ?", "at < ?"]
    values: list[object] = [wanted.since - wanted.since % unit, wanted.until]
    if wanted.key_id is not None:
        conditions.append("key_id = ?")
        values.append(wanted.key_id)
    if wanted.key_ids is not None:
        # SQL has no empty list; the empty id matches no key, only the sum over all keys.
        conditions.append(f"key_id IN {_among(len(wanted.key_ids))}" if wanted.key_ids else "1 = 0")
        values.extend(wanted.key_ids)
    if wanted.tenant is not None:
        conditions.append("key_id IN (SELECT id FROM api_key WHERE tenant = ?)")
        values.append(wanted.tenant)
    if wanted.key_id is None and wanted.key_ids is None and wanted.tenant is None:
        conditions.append("key_id = ?")
        values.append(_ALL_KEYS)
    return conditions, values


# Unusual events outlive a restart.


_ADD_ANOMALY: Final = """INSERT INTO unusual (at, kind, key_id, address, detail, tenant)
    VALUES (?, ?, ?, ?, ?, (SELECT tenant FROM api_key WHERE id = ?))"""


_OLD_KEYS: Final = f"""SELECT id, created_at FROM api_key
    WHERE status = 'active' AND retires_at IS NULL AND created_at <= ? AND (expires_at IS NULL OR expires_at > ?)
    AND id NOT IN (SELECT key_id FROM unusual WHERE kind = '{AnomalyKind.OLD_KEY}' AND key_id IS NOT NULL)
    ORDER BY created_at LIMIT ?"""  # noqa: S608 - no input


class StoredAnomalies:
    """Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, events: Sequence[Anomaly]) -> None:
        """Write events, each with the tenant of its key."""
        async with self._database.transaction("add_unusual") as connection:
            await connection.execute_many(_ADD_ANOMALY, [_values_of(event) for event in events])

    async def add_old_keys(
        self, *, before: int, now: int, limit: int, describe: Callable[[int], str]
    ) -> Sequence[Anomaly]:
        """Add an event for each active key that was issued `before` and has none yet; of many processes, one adds it.

        Times in microseconds. describe: the event's detail, given when the key was issued.
        """
        wanted = (before, now, limit)
        if not await self._database.read("unusual", _OLD_KEYS, wanted):
            return ()
        async with self._database.transaction("add_unusual") as connection:
            found = [
                Anomaly(kind=AnomalyKind.OLD_KEY, key_id=key_id, at=now, address="", detail=describe(created_at))
                for key_id, created_at in await connection.fetch(_OLD_KEYS, wanted)
            ]
            await connection.execute_many(_ADD_ANOMALY, [_values_of(event) for event in found])
        return found

    async def newest(self, *, limit: int, tenant: str | None = None) -> Sequence[Anomaly]:
        """The newest first; with `tenant`, only those of its keys."""
        where, values = ("", (limit,)) if tenant is None else ("WHERE tenant = ?", (tenant, limit))
        sql = f"SELECT kind, key_id, at, address, detail FROM unusual {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 - no input
        kinds = {kind.value: kind for kind in AnomalyKind}
        return [
            Anomaly(kind=kinds[kind], key_id=key_id, at=at, address=address, detail=detail)
            for kind, key_id, at, address, detail in await self._database.read("unusual", sql, values)
            if kind in kinds
        ]


def _values_of(event: Anomaly) -> tuple[object, ...]:
    return event.at, event.kind.value, event.key_id, event.address, event.detail, event.key_id


# Quota states outlive a restart.


_SAVE_QUOTA: Final = """INSERT INTO quota_state (quota, subject, state, expires_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (quota, subject) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at"""
NO_NOTE: Final = "quota NOT LIKE '(%'"
"""Rows of quotas. A row whose name begins with a parenthesis, which no quota's name can, is a note about the store."""
_SIDECAR: Final = "(sidecar)"
_PRESENT_MICROS: Final = 20_000_000
_OF_STRANGERS: Final = """state LIKE '%"address"%' AND state NOT LIKE '%"key"%' AND state NOT LIKE '%"tenant"%'"""
_TRIM_QUOTAS: Final = f"""DELETE FROM quota_state WHERE (quota, subject) IN (
    SELECT quota, subject FROM quota_state WHERE {NO_NOTE} ORDER BY {_OF_STRANGERS} DESC, expires_at LIMIT ?)"""  # noqa: S608 - text of our own


class StoredQuotas:
    """Stores the limiter's rows; it only knows which of them count by address. Every method raises StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, *, most: int) -> Sequence[QuotaRow]:
        """Unexpired rows, up to a maximum: rows by address and rows that expire soon come last."""
        sql = f"""SELECT quota, subject, state, expires_at FROM quota_state WHERE expires_at > ? AND {NO_NOTE}
            ORDER BY {_OF_STRANGERS}, expires_at DESC LIMIT ?"""  # noqa: S608 - text of our own
        return await self._database.read("load_quota_states", sql, (self._database.now(), most))

    async def save(self, rows: Sequence[QuotaRow]) -> None:
        """Replace rows of the same quota and subject, and delete expired ones, in one transaction."""
        async with self._database.transaction("save_quota_states") as connection:
            await connection.execute("DELETE FROM quota_state WHERE expires_at <= ?", (self._database.now(),))
            await connection.execute_many(_SAVE_QUOTA, rows)

    async def forget(self) -> None:
        """Remove all rows, in one transaction."""
        async with self._database.transaction("forget_quota_states") as connection:
            await connection.execute(f"DELETE FROM quota_state WHERE {NO_NOTE}")  # noqa: S608 - text of our own

    async def present(self, sidecar: str) -> int:
        """Record that this sidecar counts in memory. Returns how many do, including this one.

        For stores on other machines, whose users the kernel does not know. Call it again within 20 seconds, or the
        sidecar is forgotten. `sidecar` names the process, and stays the same after a restart.
        """
        now = self._database.now()
        note = (_SIDECAR, sidecar, "", now + _PRESENT_MICROS)
        async with self._database.transaction("count_sidecars") as connection:
            await connection.execute_many(_SAVE_QUOTA, [note])
            sql = "SELECT count(*) FROM quota_state WHERE quota = ? AND expires_at > ?"
            [(number,)] = await connection.fetch(sql, (_SIDECAR, now))
        return int(number)

    async def absent(self, sidecar: str) -> None:
        """Record that this sidecar ends."""
        async with self._database.transaction("count_sidecars") as connection:
            await connection.execute("DELETE FROM quota_state WHERE quota = ? AND subject = ?", (_SIDECAR, sidecar))

    async def trim(self, *, most: int) -> None:
        """Keep at most this many rows, in the order of `load`."""
        async with self._database.transaction("trim_quota_states") as connection:
            counts = await connection.fetch(f"SELECT count(*) FROM quota_state WHERE {NO_NOTE}")  # noqa: S608 - ours
            rows = sum(count for (count,) in counts)
            if rows > most:
                await connection.execute(_TRIM_QUOTAS, (rows - most,))
