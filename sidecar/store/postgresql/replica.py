"""Looks keys up at a standby (`store.replica`), which may lag, without ever missing a revocation.

LISTEN does not work on a standby, so the primary announces changes, wherever keys are looked up: after the
announcement, the key in memory is out of date, as usual. But the standby may still show the key as it was before the
change. Such a row is never used, for these reasons:

- Every transaction that changes keys writes a new random number to `generation`, and holds its row until it commits. So
  the primary went through one sequence of numbers without repetition.
- A standby replays commits in the primary's order, so a snapshot with a certain number includes every change up to the
  one that wrote it. A lookup reads the number and the keys in one statement, and so in one snapshot.
- The rows are used only if that number is the newest of the primary that this process knew, at the beginning or at the
  end of the lookup. So they include every change that was known when the lookup began. A change that becomes known
  later makes the cache read again, as it does for lookups at the primary.
- For any other number (the standby lags, is ahead of the announcement, or is not a copy of this primary), the primary
  is asked. While the primary is unreachable, no number is right: requests get 503, or `store.grace` applies.

So a revocation takes effect as fast as with the primary alone. The standby's number is checked every second. If it
lagged twice in a row, did not answer, or is not a standby (a logical replica may show rows in another order), it is not
used until it has caught up. A standby that hangs delays the lookups in progress by `REPLICA_SECONDS`, once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.connection import answers_within

ASK_SECONDS: Final = 1.0
REPLICA_SECONDS: Final = 0.25
"""How long a lookup waits for the standby, before it goes to the primary."""
_NUMBER: Final = "CASE WHEN pg_is_in_recovery() THEN value END"
"""NULL if it is not a standby."""
ASK_NUMBER: Final = f"SELECT {_NUMBER} FROM generation"  # noqa: S608 - no input

_log = logging.getLogger(__name__)


class Replica:
    """A standby, and whether it has every change of the primary.

    fetch: runs a query there; raises StoreUnavailable. number: the newest known number of the primary, or None.
    """

    def __init__(
        self,
        fetch: Callable[[str, Sequence[Any]], Awaitable[list[Any]]],
        name: str,
        *,
        number: Callable[[], int | None],
    ) -> None:
        self._fetch, self._name, self._number = fetch, name, number
        self._trouble = "was not asked yet"
        """Why it is not used; empty if it is."""
        self._lagged = False
        """Whether it lagged at the last check."""
        self._keeping: asyncio.Task[None] | None = None

    @property
    def in_step(self) -> bool:
        """Whether lookups go there."""
        return not self._trouble

    def remarks(self) -> Sequence[str]:
        """A line for readiness, while lookups go to the primary."""
        return [f"store: {self._sentence()}"] if self._trouble else []

    async def find(self, sql: str, values: Sequence[Any]) -> list[Any] | None:
        """Rows of a query whose first column is never NULL; None if the primary must be asked."""
        before = self._number()
        if self._trouble or before is None:
            return None
        together = f"SELECT {_NUMBER}, found.* FROM generation LEFT JOIN ({sql}) AS found ON true"  # noqa: S608 - our own
        try:
            rows = await self._ask(together, values)
        except StoreUnavailable as error:
            self._leave(str(error))
            return None
        if not rows or rows[0][0] is None or rows[0][0] not in (before, self._number()):
            return None
        return [row[1:] for row in rows if row[1] is not None]

    async def start(self) -> None:
        """Check whether it has caught up, and keep checking. An unreachable standby does not prevent the start."""
        await self.look()
        if self._trouble:
            _log.warning("sidecar: store: %s", self._sentence())
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping

    async def look(self) -> None:
        """Ask for its number once."""
        before = self._number()
        try:
            rows = await self._ask(ASK_NUMBER, ())
        except StoreUnavailable as error:
            self._leave(str(error))
            return
        shown = rows[0][0] if rows else None
        if shown is None:
            self._leave("it is not a standby")
        elif shown in (before, self._number()):
            self._lagged = False
            self._use()
        elif self._lagged:
            self._leave("it lags behind the primary by over 1 s, or is not a copy of it")
        else:
            self._lagged = True

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(ASK_SECONDS)
            await self.look()

    async def _ask(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Raises StoreUnavailable."""
        asking = asyncio.ensure_future(self._fetch(sql, values))
        try:
            if await answers_within(REPLICA_SECONDS, asking):
                return asking.result()
            raise StoreUnavailable(f"{self._name} did not answer within {REPLICA_SECONDS:g} s")
        finally:
            asking.cancel()

    def _use(self) -> None:
        if self._trouble and self._keeping is not None:
            _log.warning("sidecar: store: lookups go to the replica %s again", self._name)
        self._trouble = ""

    def _leave(self, trouble: str) -> None:
        first, self._trouble = not self._trouble, trouble
        if first:
            _log.warning("sidecar: store: %s", self._sentence())

    def _sentence(self) -> str:
        return f"lookups go to the primary instead of the replica {self._name}: {self._trouble}"
