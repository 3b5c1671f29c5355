"""Whether any process has changed a key, asked of SQLite in microseconds."""

import sqlite3
from contextlib import ExitStack, closing

from sidecar.keys.sqlite_errors import is_lock, translated, unavailable
from sidecar.keys.sqlite_file import FileIdentity, connect


class GenerationWatch:
    """A read-only connection of its own, used on the thread of the event loop only; it never waits for a lock.

    `PRAGMA data_version` tells of any commit by another connection. Most commits are of last-used times and quota
    states, so only the `generation` row, which triggers change with every change of a key, says that keys changed.
    """

    def __init__(self, path: str) -> None:
        """Raises StoreUnavailable."""
        self._path = path
        self._file = FileIdentity(path)
        self._version = -1
        self._generation = 0
        with translated(path), ExitStack() as stack:
            self._connection = stack.enter_context(closing(connect(path, timeout=0, mode="ro")))
            self._execute = self._connection.execute
            self._refresh()
            stack.pop_all()

    def current(self) -> int:
        """Raises StoreUnavailable. The last known number while the database is locked: nobody could learn more."""
        self._file.check()
        try:
            self._refresh()
        except sqlite3.Error as error:
            if not is_lock(error):
                raise unavailable(error, self._path) from error
        return self._generation

    def close(self) -> None:
        self._connection.close()

    def _refresh(self) -> None:
        [(version,)] = self._execute("PRAGMA data_version")
        if version != self._version:
            [(self._generation,)] = self._execute("SELECT value FROM generation")
            self._version = version
