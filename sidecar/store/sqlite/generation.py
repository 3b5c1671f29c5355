"""Detects whether any process has changed a key, and which, without waiting for a lock.

SQLite cannot be queried on the event loop: if another process holds locks on the `-shm` file, it sleeps for up to ten
seconds. But every commit changes the header of the log's index, at the start of that file (sqlite.org/walformat.html,
section 2.1), and reading a file takes no lock. While the header is the same, nothing was committed, and no lock
matters. Once it changes, a thread queries SQLite, and requests wait for the result.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from sidecar.core.units import Clock
from sidecar.keys.cache import MOST_CHANGES, KeyChanges
from sidecar.keys.ports import StoreUnavailable
from sidecar.store.connection import answers_within
from sidecar.store.sqlite.files import RESTART, OpenedFiles

CHANGES: Final = """SELECT value, serial, token, key_id FROM generation LEFT JOIN key_change ON serial >= ?
    ORDER BY serial DESC LIMIT ?"""
"""The generation, with the newest changes of keys, all as of one commit, because a statement sees only one.

Most commits write last-used times and quota states. Triggers write both tables on every change of a key; a new key only
changes the generation.
"""

_INDEX_HEADER: Final = 96
"""Bytes of the index's header, which is stored twice."""
_COMPANIONS_MICROS: Final = 20_000
"""How long requests may miss that a -wal or -shm file is gone.

Two more system calls each would cost a tenth of a request. Writes always check.
"""

WAIT_SECONDS: Final = 1.0
"""How long SQLite may take to respond before requests fail with an unavailable store."""
_LEAST_SECONDS: Final = 0.1
"""How long each request waits after that."""
_PAUSE_SECONDS: Final = 0.02


class GenerationWatch:
    """Keeps the number that changes with every change of a key, by any process.

    fetch: runs CHANGES with its two values, on a connection of its own. Raises StoreUnavailable.
    """

    def __init__(
        self, files: OpenedFiles, fetch: Callable[[Sequence[Any]], Awaitable[list[Any]]], clock: Clock
    ) -> None:
        self._files, self._fetch, self._clock = files, fetch, clock
        self._index = files.index
        self._checked_at = clock.micros()
        self._header = b""
        """The header before the number was read, and after."""
        self._changes = KeyChanges()
        self.changes_since = self._changes.since
        self._newest: Any = None
        """Serial and token of the newest change that was read."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._trouble = ""
        self._open = True

    def current(self) -> int | None:
        """The number; None after a commit, when only `read` can find it out. Takes some microseconds.

        Raises StoreUnavailable.
        """
        now = self._clock.micros()
        if 0 <= now - self._checked_at < _COMPANIONS_MICROS:
            self._files.check_database()
        else:
            self._files.check()
            self._checked_at = now
        return self._changes.generation if self._read_header() == self._header else None

    async def read(self) -> int:
        """The number, including every change acknowledged before the call.

        Raises StoreUnavailable if SQLite does not respond within WAIT_SECONDS.
        """
        if self._asking is not None:
            # The running query may have read the number before the change; one that starts now includes it.
            await self._answered(self._asking)
        found = self.current()
        if found is not None:
            return found
        if self._asking is None:
            self._asked_at = asyncio.get_running_loop().time()
            self._asking = asyncio.create_task(self._ask())
        await self._answered(self._asking)
        return self._changes.generation

    async def close(self) -> None:
        """Stop asking."""
        self._open = False
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking

    async def _answered(self, asking: asyncio.Task[None]) -> None:
        left = self._asked_at + WAIT_SECONDS - asyncio.get_running_loop().time()
        if not await answers_within(max(left, _LEAST_SECONDS), asking) or asking.cancelled():
            raise StoreUnavailable(self._trouble or f"the key store {self._files.path} is held by another process")

    async def _ask(self) -> None:
        """Query until there is a result, so that it is known as soon as the store is back."""
        try:
            while not await self._learned():  # noqa: ASYNC110 - SQLite does not announce that a lock is gone
                await asyncio.sleep(_PAUSE_SECONDS)
            self._trouble = ""
        finally:
            self._asking = None

    async def _learned(self) -> bool:
        try:
            before = self._read_header()
            self._note(await self._fetch((self._newest[0] if self._newest else 0, MOST_CHANGES + 1)))
            # The number may or may not include commits in between.
            self._header = before if before == self._read_header() else b""
        except StoreUnavailable as error:
            self._trouble = str(error)
            return False
        return True

    def _note(self, rows: Sequence[Any]) -> None:
        """The changes are known if the rows reach back to the previous newest change."""
        found = [row[1:3] for row in rows]
        known = self._newest is not None and found[-1] == self._newest
        self._newest = found[0] if found[0][0] is not None else None
        self._changes.add(rows[0][0], frozenset(row[3] for row in rows[:-1]) if known else None)

    def _read_header(self) -> bytes:
        """Raises StoreUnavailable."""
        if not self._open:
            raise StoreUnavailable(f"the key store {self._files.path} is closed")
        try:
            header = os.pread(self._index, _INDEX_HEADER, 0)
        except OSError as error:
            raise StoreUnavailable(f"{self._files.path}-shm cannot be read ({error.strerror}): {RESTART}") from error
        if len(header) < _INDEX_HEADER:
            # SQLite has mapped the file: reading a truncated part would kill the process with SIGBUS.
            raise StoreUnavailable(f"{self._files.path}-shm was cut off while the key store is in use: {RESTART}")
        return header
