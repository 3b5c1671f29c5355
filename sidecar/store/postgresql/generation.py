"""Whether any process has changed a key: PostgreSQL announces it (LISTEN), and it is polled every second.

A trigger announces each change on commit, with the number that the transaction wrote to `generation`. So a request only
reads an attribute. The number, polled over the same connection, reveals lost notifications. Without a connection
nothing is known, and the store is unavailable.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from sidecar.core.units import Clock
from sidecar.keys.cache import KeyChanges
from sidecar.keys.ports import RESTORE_DUMP, StoreUnavailable
from sidecar.store.connection import answers_within

CHANNEL: Final = "sidecar_keys"
ASK_SECONDS: Final = 1.0
"""How often the number is polled, and how long a response may take before the connection is dropped."""
_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
"""Between attempts to connect, so that a returning server is noticed within 5 seconds."""
_MOST_DONE: Final = 1_000
_NUMBER: Final = "SELECT value, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint FROM generation"


def the_row(rows: Sequence[Any], name: str) -> Any:
    """The only row of `generation`. Raises StoreUnavailable if someone removed it or added another one."""
    if len(rows) != 1:
        raise StoreUnavailable(f"the table `generation` of the key store {name} is damaged: {RESTORE_DUMP}")
    return rows[0]


class KeyWatch:
    """Keeps a number that changes with every change of a key, by any process.

    The number counts what this process learnt: numbers of the store may be read in one order and learnt in another.
    connect: makes a connection for this alone. Raises StoreUnavailable.
    lag: receives for each change how many seconds after its commit it was known here.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Any]], name: str, *, clock: Clock, lag: Callable[[float], None]
    ) -> None:
        self._connect, self._name, self._clock, self._lag = connect, name, clock, lag
        self._ahead = 0
        """Microseconds by which the server's clock is ahead of ours."""
        self._changes = KeyChanges()
        self.changes_since = self._changes.since
        self._number: int | None = None
        """The last one that was learnt; None if that is not known."""
        self._trouble = f"the key store {name} is not open"
        self._connection: Any = None
        self._asking = asyncio.Lock()
        self._lost = asyncio.Event()
        self._done: deque[int] = deque(maxlen=_MOST_DONE)
        """Numbers of transactions whose notifications have all arrived."""
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._keeping: asyncio.Task[None] | None = None

    def current(self) -> int:
        """The number. Raises StoreUnavailable while changes are not announced."""
        if self._trouble:
            raise StoreUnavailable(self._trouble)
        return self._changes.generation

    @property
    def number(self) -> int | None:
        """The newest known number of the store; None if it is uncertain which one is the newest."""
        return None if self._trouble else self._number

    async def read(self) -> int:
        """The number, including every change acknowledged before the call. Raises StoreUnavailable."""
        self.current()
        await self._ask()
        return self.current()

    async def reached(self, number: int) -> None:
        """Wait for the notifications of this process's own transaction; without them, assume that any key changed."""
        if self._trouble or number in self._done:
            return
        arrived = self._awaited.setdefault(number, asyncio.get_running_loop().create_future())
        try:
            if not await answers_within(ASK_SECONDS, arrived):
                self._learn(None, None)
        finally:
            self._awaited.pop(number, None)

    async def start(self) -> None:
        """Begin to listen. Raises StoreUnavailable."""
        await self._listen()
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop listening."""
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
        self._trouble = f"the key store {self._name} is closed"
        if self._connection is not None:
            await self._connection.close()

    async def _listen(self) -> None:
        """Raises StoreUnavailable."""
        self._connection = connection = await self._connect()
        self._lost = lost = asyncio.Event()
        try:
            await connection.listen(
                CHANNEL, self._on_notification, lambda: self._disconnected(lost, f"{self._name} ended the connection")
            )
            before = self._changes.generation
            number = await self._fetch_number()
        except BaseException:
            lost.set()
            connection.terminate()
            raise
        # Changes in between were not announced.
        self._learn(number if before == self._changes.generation else None, None)
        self._trouble = ""

    def _disconnected(self, lost: asyncio.Event, trouble: str) -> None:
        if lost is self._lost and not lost.is_set():
            self._trouble = f"the key store cannot tell which keys have changed: {trouble}"
            lost.set()

    async def _keep(self) -> None:
        """Poll while there is a connection, and connect while there is none."""
        pause = _PAUSE_SECONDS
        try:
            while True:
                try:
                    if self._lost.is_set():
                        await self._listen()
                        pause = _PAUSE_SECONDS
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._lost.wait(), ASK_SECONDS)
                    if not self._lost.is_set():
                        await self._ask()
                except StoreUnavailable as error:
                    self._trouble = str(error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        finally:
            self._trouble = f"the key store {self._name} is no longer watched: restart the sidecar"

    async def _ask(self) -> None:
        """Raises StoreUnavailable; the connection is then dropped."""
        lost, connection, before = self._lost, self._connection, self._changes.generation
        asked = asyncio.ensure_future(self._fetch_number())
        try:
            if not await answers_within(ASK_SECONDS, asked):
                raise StoreUnavailable(f"the key store {self._name} did not answer within {ASK_SECONDS:g} s")
            number = asked.result()
        except StoreUnavailable as error:
            self._disconnected(lost, str(error))
            connection.terminate()
            raise
        finally:
            asked.cancel()
        if number != self._number:
            # If notifications arrived meanwhile, the number may have been read before or after them.
            self._learn(number if before == self._changes.generation else None, None)

    async def _fetch_number(self) -> int:
        async with self._asking:
            asked = self._clock.micros()
            rows = await self._connection.fetch(_NUMBER)
            number, at = the_row(rows, self._name)
            self._ahead = at - (asked + self._clock.micros()) // 2
            return int(number)

    def _on_notification(self, payload: str) -> None:
        """`NUMBER ["id", …]`, `NUMBER many`, or at the end of a transaction `NUMBER done MICROSECONDS`."""
        first, _, rest = payload.partition(" ")
        word, _, at = rest.partition(" ")
        try:
            number, micros = int(first), int(at) if word == "done" and at else None
            ids = frozenset(map(str, json.loads(rest))) if rest.startswith("[") else None
        except (ValueError, RecursionError):  # Anyone who can connect can send one: assume that any key changed.
            self._learn(self._number, None)
            return
        if word != "done":
            self._learn(number, ids)
            return
        if micros is not None:
            self._lag(max(0, self._clock.micros() + self._ahead - micros) / 1e6)
        self._done.append(number)
        if (awaited := self._awaited.get(number)) is not None and not awaited.done():
            awaited.set_result(None)

    def _learn(self, number: int | None, ids: frozenset[str] | None) -> None:
        """ids: of changed or issued keys; None if too many or unknown.

        Those of a transaction may come in several calls.
        """
        self._number = number
        self._changes.add(self._changes.generation + 1, ids)


class NotWatched:
    """For a short-lived process that does not follow changes: reads the number each time."""

    def __init__(self, fetch: Callable[[], Awaitable[int]]) -> None:
        self._fetch = fetch

    async def read(self) -> int:
        """As KeyReader.read_generation."""
        return await self._fetch()

    def current(self) -> int | None:
        """As KeyReader.generation."""
        return None

    def changes_since(self, generation: int) -> frozenset[str] | None:
        """As KeyReader.changes_since."""
        return None

    async def reached(self, number: int) -> None:
        """Nothing waits for it."""

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""
