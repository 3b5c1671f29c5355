"""The store's file: made for its owner only, checked before it is used, and noticed when it is taken away."""

import os
import sqlite3
from contextlib import closing
from errno import ENOENT
from pathlib import Path

from sidecar.keys.ports import StoreUnavailable
from sidecar.keys.sqlite_errors import translated
from sidecar.store.schema import migrate, version_of

WRITE_LOCK_SECONDS = 5.0
_ISSUE = "`sidecar keys issue` or `sidecar store make` makes it"


def prepare(path: str, *, create: bool) -> None:
    """Make sure that a store of the newest schema, in WAL mode, is at `path`. Blocking.

    Raises StoreUnavailable; without `create`, also where there is no store yet, for an empty store put in the place of
    a lost one would refuse every key.
    """
    if create:
        _make(path)
    elif not os.path.exists(path):
        raise StoreUnavailable(f"there is no key store at {path}: {_ISSUE}, or check the path")
    _refuse_unwritable(path)
    with translated(path), closing(connect(path, timeout=WRITE_LOCK_SECONDS)) as connection:
        if version_of(connection, path) == 0 and not create:
            raise StoreUnavailable(f"the key store {path} is empty: {_ISSUE}, or restore it from a backup")
        [(mode,)] = connection.execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise StoreUnavailable(f"the key store {path} cannot use a write-ahead log: put it on a local disk")
        migrate(connection, path)


def connect(path: str, *, timeout: float, mode: str = "rw") -> sqlite3.Connection:
    """A plain connection in autocommit mode that never makes a file."""
    return sqlite3.connect(uri_of(path, mode), uri=True, timeout=timeout, isolation_level=None)


def uri_of(path: str, mode: str) -> str:
    return f"{Path(path).absolute().as_uri()}?mode={mode}"


class FileIdentity:
    """Which file was opened: one moved into its place holds other keys, and its revocations would go unseen."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = self._look()

    def check(self) -> None:
        """Raises StoreUnavailable when the file is no more the one that was opened. About a microsecond."""
        if self._look() != self._seen:
            raise StoreUnavailable(f"the key store {self._path} was replaced while in use: restart the sidecar")

    def _look(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise StoreUnavailable(
                f"the key store {self._path} is gone or out of reach ({error.strerror}): restore it and restart"
            ) from error
        return found.st_dev, found.st_ino


def _make(path: str) -> None:
    try:
        # SQLite gives the -wal and -shm files the mode of the database.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        return
    except OSError as error:
        folder_missing = f"there is no folder {os.path.dirname(os.path.abspath(path))}"
        reason = folder_missing if error.errno == ENOENT else error.strerror
        raise StoreUnavailable(f"the key store {path} cannot be made: {reason}") from error


def _refuse_unwritable(path: str) -> None:
    if os.path.isdir(path):
        raise StoreUnavailable(f"the key store {path} is a folder: name a file in it")
    for place in (path, os.path.dirname(os.path.abspath(path))):
        if not os.access(place, os.R_OK | os.W_OK):
            raise StoreUnavailable(f"the key store {path} cannot be used: this user may not read and write {place}")
