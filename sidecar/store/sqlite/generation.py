"""Whether any process has changed a key, and which, found out without waiting for anybody.

SQLite cannot be asked on the event loop: where another process holds locks of the `-shm` file, it sleeps for up to ten
seconds. But every commit changes the header of the log's index, at the start of that file
(sqlite.org/walformat.html, section 2.1), and reading a file takes no lock. While the header is the same, nothing was
committed, and no lock matters. Once it is another one, SQLite is asked in a thread, and requests wait for its answer.
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
"""The generation, with the newest changes of keys; all of one commit, because one statement sees one.

Most commits are last-used times and quota states. Triggers write both tables with every change of a key; a key that is
added changes the generation only.
"""

_INDEX_HEADER: Final = 96
"""Bytes of the index's header, which stands there twice."""
_COMPANIONS_MICROS: Final = 20_000
"""How long a -wal or -shm file that is gone may stay unseen by requests: two more calls of the system for each would
cost a tenth of a request. Writes look at each."""

WAIT_SECONDS: Final = 1.0
"""How long SQLite may take to answer, before requests are told that the store is unavailable."""
_LEAST_SECONDS: Final = 0.1
"""What each request waits after that."""
_PAUSE_SECONDS: Final = 0.02


class GenerationWatch:
    """Knows the number that changes with every change of a key, by any process.

    fetch: rows of CHANGES for its two values, from a connection that nobody else uses. Raises StoreUnavailable.
    """

    def __init__(
        self, files: OpenedFiles, fetch: Callable[[Sequence[Any]], Awaitable[list[Any]]], clock: Clock
    ) -> None:
        self._files, self._fetch, self._clock = files, fetch, clock
        self._index = files.index
        self._checked_at = clock.micros()
        self._header = b""
        """The one from before the number was read, and after."""
        self._changes = KeyChanges()
        self.changes_since = self._changes.since
        self._newest: Any = None
        """Serial and token of the newest change that was read."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._trouble = ""
        self._open = True

    def current(self) -> int | None:
        """The number; None where something was committed, so that only `read` can tell. Takes some microseconds.

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
        """The number, in which every change counts that was acknowledged before the call.

        Raises StoreUnavailable where SQLite does not answer within WAIT_SECONDS.
        """
        if self._asking is not None:
            # It may have read the number before the change; an answer that is asked for from now on has it.
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
        """Ask until there is an answer, so that it is known as soon as the store is back."""
        try:
            while not await self._learned():  # noqa: ASYNC110 - SQLite tells nobody that a lock is gone
                await asyncio.sleep(_PAUSE_SECONDS)
            self._trouble = ""
        finally:
            self._asking = None

    async def _learned(self) -> bool:
        try:
            before = self._read_header()
            self._note(await self._fetch((self._newest[0] if self._newest else 0, MOST_CHANGES + 1)))
            # What was committed in between may be in the number or not.
            self._header = before if before == self._read_header() else b""
        except StoreUnavailable as error:
            self._trouble = str(error)
            return False
        return True

    def _note(self, rows: Sequence[Any]) -> None:
        """The changes are known where the rows lead back to the one that was the newest before."""
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
            # SQLite has mapped the file: the process would end by SIGBUS if it read what was cut off.
            raise StoreUnavailable(f"{self._files.path}-shm was cut off while the key store is in use: {RESTART}")
        return header
