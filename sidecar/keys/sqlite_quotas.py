"""Quota states as rows."""

from collections.abc import Sequence

from sidecar.keys.ports import QuotaRow
from sidecar.store.connection import StorePart


class SqliteQuotas(StorePart):
    """QuotaStates."""

    async def load_quota_states(self) -> Sequence[QuotaRow]:
        sql = "SELECT quota, subject, state, expires_at FROM quota_state WHERE expires_at > ?"
        return await self._lines.read("load_quota_states", sql, (self._lines.now(),))

    async def save_quota_states(self, rows: Sequence[QuotaRow]) -> None:
        async with self._lines.transaction("save_quota_states") as line:
            await line.rows("DELETE FROM quota_state WHERE expires_at <= ?", (self._lines.now(),))
            await line.many("INSERT OR REPLACE INTO quota_state VALUES (?, ?, ?, ?)", rows)
