"""How many keys there are, and which have a moment of their life in a span of time."""

from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.core.model import ApiKey
from sidecar.keys.ports import Turn
from sidecar.keys.records import key_of
from sidecar.store.connection import StorePart
from sidecar.store.keys import SELECT_KEY

# Conditions as those of the partial indexes: without them SQLite could not use these.
_TURNS: Final[Mapping[Turn, tuple[str, str, str]]] = {
    "created": ("api_key_age", "created_at", "status = 'active' AND retires_at IS NULL"),
    "expires": ("api_key_expiry", "expires_at", "status = 'active' AND expires_at IS NOT NULL"),
    "retires": ("api_key_retirement", "retires_at", "status = 'active' AND retires_at IS NOT NULL"),
}


class SqliteCensus(StorePart):
    """KeyCensus and KeyCalendar."""

    async def counts(self) -> Mapping[tuple[str, str], int]:
        # In the order of an index that holds all of it, so that nothing is sorted and no key is read.
        sql = """SELECT status, environment, count(*), total(status = 'active' AND expires_at <= ?)
            FROM api_key INDEXED BY api_key_standing GROUP BY status, environment"""
        counts: dict[tuple[str, str], int] = {}
        for status, environment, count, expired in await self._lines.read("counts", sql, (self._lines.now(),)):
            for standing, number in ((status, count - int(expired)), ("expired", int(expired))):
                if number:
                    counts[standing, environment or ""] = number
        return counts

    async def algorithms(self) -> Mapping[str, int]:
        sql = "SELECT algorithm, count(*) FROM api_key WHERE status <> 'revoked' GROUP BY algorithm"
        return dict(await self._lines.read("algorithms", sql))

    async def turning(self, turn: Turn, *, since: int, until: int, tenant: str | None, limit: int) -> Sequence[ApiKey]:
        index, column, condition = _TURNS[turn]
        sql = (
            f"{SELECT_KEY} INDEXED BY {index} WHERE {condition} AND {column} BETWEEN ?1 AND ?2 "
            f"AND (?3 IS NULL OR tenant = ?3) ORDER BY {column} LIMIT ?4"
        )
        return [key_of(row) for row in await self._lines.read("turning", sql, (since, until, tenant, limit))]

    async def unused(self, *, before: int, now: int, limit: int) -> Sequence[ApiKey]:
        index, column, condition = _TURNS["retires"]
        sql = (
            f"{SELECT_KEY} INDEXED BY {index} WHERE {condition} AND {column} > ?2 AND replaced_at <= ?1 "
            "AND (last_used_at IS NULL OR last_used_at <= ?1) AND (expires_at IS NULL OR expires_at > ?2) "
            f"ORDER BY {column} LIMIT ?3"
        )
        return [key_of(row) for row in await self._lines.read("unused", sql, (before, now, limit))]
