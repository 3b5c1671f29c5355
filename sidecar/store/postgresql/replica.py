"""Lookups from a standby (`store.replica`), which may lag: never so that a revocation is missed.

LISTEN does not work on a standby, so changes are learnt from the primary, whoever looks keys up: a request that comes
after the news of a change finds the key out of date in memory, as ever. What remains is that the standby may still show
the key as it was. Why that never counts:

- Every transaction that changes keys writes a new random number to `generation`, and holds its row until it commits. So
  the primary went through one sequence of numbers, none of which came twice.
- A standby replays commits in the primary's order, so a snapshot of it that shows a number has each change up to the
  one that wrote it. A lookup reads the number and the keys in one statement, and so in one snapshot.
- Its rows count only where that number is the primary's newest that this process has learnt, when it began to ask or
  when it was answered. So they hold every change that was known when the lookup began. A change that is known since
  makes the cache read again, as it does where the primary was asked.
- For any other number (the standby lags, is ahead of the news, or is no copy of this primary), the primary is asked.
  While nothing is learnt from the primary, no number is right: requests get 503, or `store.grace`.

So the bound of a revocation is the primary's. The standby is asked for its number every second; where it lagged twice
in a row, did not answer, or is no standby (a logical replica may show rows in another order), it is left alone until it
is in step. One that hangs costs those who are looking a key up `REPLICA_SECONDS`, once.
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
"""NULL where it is no standby."""
ASK_NUMBER: Final = f"SELECT {_NUMBER} FROM generation"  # noqa: S608 - no input

_log = logging.getLogger(__name__)


class Replica:
    """A standby, and whether it has what the primary has.

    fetch: rows of a query there; raises StoreUnavailable. number: the newest that is known of the primary's, or None.
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
        """Why it is not asked; empty where it is."""
        self._lagged = False
        """Whether it did when it was last asked."""
        self._keeping: asyncio.Task[None] | None = None

    @property
    def in_step(self) -> bool:
        """Whether lookups go there."""
        return not self._trouble

    def remarks(self) -> Sequence[str]:
        """A line for readiness, while lookups go to the primary."""
        return [f"store: {self._told()}"] if self._trouble else []

    async def find(self, sql: str, values: Sequence[Any]) -> list[Any] | None:
        """Rows of a query whose first column is never NULL; None where the primary is to be asked."""
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
        """Look whether it is in step, and go on to look. A standby that is away keeps nobody from starting."""
        await self.look()
        if self._trouble:
            _log.warning("sidecar: store: %s", self._told())
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
            self._leave("it is no standby")
        elif shown in (before, self._number()):
            self._lagged = False
            self._use()
        elif self._lagged:
            self._leave("it lags behind the primary by over 1 s, or is no copy of it")
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
            _log.warning("sidecar: store: %s", self._told())

    def _told(self) -> str:
        return f"lookups go to the primary, and not to the replica {self._name}: {self._trouble}"
