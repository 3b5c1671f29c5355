"""SQLite's exceptions, translated into what happened and what to do about it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sidecar.keys.ports import StoreUnavailable

_PRIMARY: Final = 0xFF
"""Extended result codes hold the primary one in their last byte."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_PROTOCOL: "is locked by another process: try again, or end the process that holds it (see `fuser`)",
    sqlite3.SQLITE_READONLY: "is read-only: give this user write permission to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_PERM: "cannot be opened: check that this user may read and write the file and its folder",
    sqlite3.SQLITE_CORRUPT: "is damaged: stop the sidecar and restore the file from a backup",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another file, or restore it from a backup",
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "cannot be read or written (I/O error): check the disk, its free space and file size limits",
}


def is_lock(error: sqlite3.Error) -> bool:
    """Whether the database could not be read only because somebody holds it just now."""
    return _code(error) & _PRIMARY in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


def unavailable(error: sqlite3.Error, path: str) -> StoreUnavailable:
    """The same news in the store's terms."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    advice = _ADVICE.get(_code(error) & _PRIMARY, "failed: check the file with `sqlite3 FILE 'PRAGMA integrity_check'`")
    return StoreUnavailable(f"the key store {path} {advice} [{name}]")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Every sqlite3.Error inside becomes StoreUnavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(error, path) from error


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself (a closed connection) have no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
