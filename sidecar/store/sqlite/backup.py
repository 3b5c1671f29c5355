"""Copies a SQLite store to one file while other processes use it, checks the copy, and restores it.

All functions block, and raise StoreUnavailable.
"""

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidecar.keys.ports import StoreUnavailable
from sidecar.store.sqlite.connection import WRITE_LOCK_SECONDS, connect, is_lock, translated, uri_of
from sidecar.store.sqlite.files import COMPANIONS, exclusively, holders, in_use, refuse_strays, refuse_used
from sidecar.store.sqlite.inspect import Checked, check

Progress = Callable[[int], None]
"""Called with the number of megabytes copied so far."""

_PAGES: Final = 1_024
"""Pages copied in one step (4 MB), between two calls of Progress."""
_MEGABYTE: Final = 1_000_000
_NOT_WRITTEN: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


def back_up(path: str, target: str, *, force: bool, progress: Progress = lambda megabytes: None) -> Checked:
    """Write a checked copy of the store to `target`, mode 0600. An existing file is replaced only with `force`."""
    _refuse_target(path, target, force=force)
    with _part_beside(target) as part:
        _copy(path, part, progress)
        checked = _sound(part, "the copy")
        _put(part, target, force=force)
    return checked


def _refuse_target(path: str, target: str, *, force: bool) -> None:
    if not os.path.exists(path):
        raise StoreUnavailable(f"there is no key store at {path}")
    if not os.path.exists(target):
        return
    if os.path.samefile(path, target):
        raise StoreUnavailable(f"{target} is the key store itself: name another file")
    if not os.path.isfile(target):
        raise StoreUnavailable(f"{target} is no file: name one in it, or beside it")
    if not force:
        raise StoreUnavailable(f"{target} exists: name another file, or replace it with --force")
    if holders(target):
        raise StoreUnavailable(f"{target} is a key store in use: name another file")


@contextmanager
def _part_beside(target: str) -> Iterator[str]:
    """An empty file (mode 0600) in the folder of `target`, removed at the end if it is still there."""
    folder, name = os.path.split(os.path.abspath(target))
    try:
        descriptor, part = tempfile.mkstemp(dir=folder, prefix=f"{name}.", suffix=".part")
    except OSError as error:
        raise StoreUnavailable(f"{target} cannot be written: {error.strerror}") from error
    os.close(descriptor)
    try:
        yield part
    finally:
        for suffix in ("", "-journal", *COMPANIONS):
            with suppress(FileNotFoundError):
                os.unlink(part + suffix)


def _copy(path: str, part: str, progress: Progress) -> None:
    """Copy the store as it is at one moment, including the changes in its log."""
    refuse_strays(path)
    with (
        translated(path),
        closing(connect(path, timeout=WRITE_LOCK_SECONDS, mode="ro")) as source,
        closing(connect(part, timeout=0)) as copy,
    ):
        # A read transaction: without it, every write by another process would restart the copy.
        source.execute("BEGIN")
        [(size,)] = source.execute("PRAGMA page_size")
        source.execute("SELECT count(*) FROM sqlite_master").fetchall()

        def copied(status: int, remaining: int, total: int) -> None:
            progress((total - remaining) * size // _MEGABYTE)

        with _written(part):
            source.backup(copy, pages=_PAGES, progress=copied)
            # A single file, which can be read even where nothing can be written.
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()


@contextmanager
def _written(part: str) -> Iterator[None]:
    """Distinguish errors of the copy from those of the store."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF not in _NOT_WRITTEN:
            raise
        raise StoreUnavailable(f"the copy {part} cannot be written: {error}") from error


def _sound(file: str, what: str) -> Checked:
    checked = check(file)
    if checked.problems:
        raise StoreUnavailable(f"{what} of the key store is not sound: {'; '.join(checked.problems)}")
    return checked


def _put(part: str, target: str, *, force: bool) -> None:
    """Rename the partial file once all of it is on disk."""
    try:
        _sync(part)
        if force:
            os.replace(part, target)
        else:
            _link(part, target)
        _sync(os.path.dirname(os.path.abspath(target)))
    except FileExistsError as error:
        raise StoreUnavailable(f"{target} exists: name another file, or replace it with --force") from error
    except OSError as error:
        raise StoreUnavailable(f"{target} cannot be written: {error.strerror}") from error


def _link(file: str, name: str) -> None:
    """Rename a file to a name that must not exist. Raises OSError."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links.
        if os.path.lexists(name):
            raise FileExistsError(name) from None
        os.rename(file, name)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What a restore would undo.


_WORKS: Final = """{0}.status = 'active' AND coalesce({0}.expires_at, :end) > :now
    AND coalesce({0}.retires_at, :end) > :now"""
_END: Final = "min(coalesce({0}.expires_at, :end), coalesce({0}.retires_at, :end))"
_REVIVED: Final = f"""FROM backup.api_key AS b LEFT JOIN main.api_key AS s ON s.id = b.id
    WHERE {_WORKS.format("b")} AND (s.id IS NULL OR NOT ({_WORKS.format("s")})
    OR {_END.format("s")} < {_END.format("b")})"""
_STANDING: Final = """CASE WHEN s.id IS NULL THEN 'not in the store' WHEN s.status <> 'active' THEN s.status
    WHEN coalesce(s.expires_at, :end) <= :now THEN 'expired' WHEN coalesce(s.retires_at, :end) <= :now THEN 'retired'
    ELSE 'ends sooner' END"""
_COMMON: Final = (
    "SELECT coalesce(max(s.id), 0) FROM main.audit AS s JOIN backup.audit AS b ON b.id = s.id AND b.hash = s.hash"
)
_SINCE: Final = "SELECT action, count(*) FROM main.audit WHERE id > ? GROUP BY action ORDER BY min(id)"
_THE_LAST: Final = 2**63 - 1
_LISTED: Final = 1_000
_CHAINED_SINCE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """A key that works in the backup, but not (or not for as long) in the store."""

    id: str
    prefix: str
    name: str
    standing: str
    """Its status in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What happened in the store after the backup was made."""

    changes: Mapping[str, int] = field(default_factory=dict)
    """Changes of keys by action, as the audit names them."""
    revived: tuple[Revived, ...] = ()
    """At most a thousand of them."""
    revived_count: int = 0
    backup_at: int | None = None
    """When the newest change in the backup was made, in microseconds."""
    unknown: str = ""
    """Why the changes are unknown; empty if they are known."""

    def __bool__(self) -> bool:
        return bool(self.changes or self.revived or self.unknown)


def _undone(path: str, part: str, now: int) -> Undone:
    """Compare both audits, and the status of every key in both stores."""
    if not os.path.exists(path):
        return Undone()
    try:
        versions = {_sound(file, what).version for file, what in ((path, "the file"), (part, "the backup"))}
        if min(versions) < _CHAINED_SINCE:
            return Undone(unknown="one of them is too old to have an audit that can be compared")
        with translated(path), closing(connect(path, timeout=WRITE_LOCK_SECONDS, mode="ro")) as connection:
            connection.execute("ATTACH DATABASE ? AS backup", (uri_of(part, "ro"),))
            return _compared(connection, {"now": now, "end": _THE_LAST})
    except StoreUnavailable as error:
        return Undone(unknown=str(error))


def _compared(connection: sqlite3.Connection, times: dict[str, int]) -> Undone:
    connection.execute("BEGIN")
    [(common,)] = connection.execute(_COMMON)
    changes = dict(connection.execute(_SINCE, (common,)).fetchall())
    [(count,)] = connection.execute(f"SELECT count(*) {_REVIVED}", times)
    sql = f"SELECT b.id, b.prefix, b.name, {_STANDING} {_REVIVED} ORDER BY b.serial LIMIT {_LISTED}"
    revived = tuple(
        Revived(id=key_id, prefix=prefix, name=name, standing=standing)
        for key_id, prefix, name, standing in connection.execute(sql, times)
    )
    [(at,)] = connection.execute("SELECT max(at) FROM backup.audit")
    return Undone(changes=changes, revived=revived, revived_count=count, backup_at=at)


# A backup that replaces the store.


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A checked copy of a backup, in the folder of the store that it will replace."""

    checked: Checked
    undone: Undone
    path: str
    _part: str
    _now: int

    def put(self) -> str | None:
        """Replace the store. Returns the path of the previous store, or None. Refuses a store that is in use."""
        try:
            return self._put()
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be replaced: {error.strerror}") from error

    def _put(self) -> str | None:
        kept = self._free_name()
        _sync(self._part)
        if not os.path.lexists(self.path):
            self._move_companions(kept)
            os.rename(self._part, self.path)
            _sync(os.path.dirname(self.path))
            return None
        if not self.undone.unknown:
            _fold_log(self.path)
        with exclusively(self.path):
            self._move_companions(kept)
            _link(self.path, kept)
            os.replace(self._part, self.path)
            _sync(os.path.dirname(self.path))
        return kept

    def _free_name(self) -> str:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now // 1_000_000))
        name, number = f"{self.path}.before-restore-{stamp}", 1
        while os.path.lexists(name):
            number += 1
            name = f"{self.path}.before-restore-{stamp}-{number}"
        return name

    def _move_companions(self, kept: str) -> None:
        """Move the old store's log away: SQLite would apply it to the backup."""
        for suffix in COMPANIONS:
            with suppress(FileNotFoundError):
                os.rename(self.path + suffix, kept + suffix)


def _fold_log(path: str) -> None:
    """Write the store's log into the database, and remove the files `-wal` and `-shm`. Raises StoreUnavailable if the
    store is in use.
    """
    with translated(path), closing(connect(path, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        except sqlite3.OperationalError as error:
            if is_lock(error):
                raise in_use(path) from error
            raise


@contextmanager
def restoring(path: str, file: str, *, now: int, progress: Progress = lambda megabytes: None) -> Iterator[Restore]:
    """Check the backup `file` and compare it with the store at `path`; only `Restore.put` replaces anything.

    now: microseconds.
    """
    path = os.path.realpath(path)
    _refuse_backup(path, file)
    with _part_beside(path) as part:
        _copy(file, part, progress)
        checked = _sound(part, f"the backup {file}")
        _own_as_before(path, part)
        yield Restore(checked=checked, undone=_undone(path, part, now), path=path, _part=part, _now=now)


def _refuse_backup(path: str, file: str) -> None:
    if not os.path.isfile(file):
        raise StoreUnavailable(f"there is no backup {file}")
    if os.path.exists(path):
        if os.path.samefile(path, file):
            raise StoreUnavailable(f"{file} is the key store itself: name a backup")
        refuse_used(path)


def _own_as_before(path: str, part: str) -> None:
    """Give the partial file the owner and mode of the store, or else the owner of its folder: root may restore for
    another user.
    """
    found = Path(path).parent.stat() if not os.path.exists(path) else os.stat(path)
    ours = os.stat(part)
    try:
        if os.path.exists(path):
            os.chmod(part, found.st_mode & 0o777)
        if (ours.st_uid, ours.st_gid) != (found.st_uid, found.st_gid) and os.geteuid() == 0:
            os.chown(part, found.st_uid, found.st_gid)
        elif os.path.exists(path) and ours.st_uid != found.st_uid:
            raise StoreUnavailable(
                f"the key store {path} belongs to user {found.st_uid}: restore it as that user, or root"
            )
    except OSError as error:
        raise StoreUnavailable(f"{part} cannot be given to the owner of the key store: {error.strerror}") from error
