"""The files of a SQLite store: the database, its write-ahead log (`-wal`) and the log's index (`-shm`).

All three belong together. A process that opens the database while others use it with a log that is gone gets a log of
its own: neither sees what the other writes, and the last one to end overwrites what the other wrote.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import ENOENT
from pathlib import Path
from typing import BinaryIO, Final

from sidecar.keys.ports import StoreUnavailable

COMPANIONS: Final = ("-wal", "-shm")
RESTORE: Final = "stop all that use it, move its -wal and -shm files away, copy a backup to its place, then restart"
RESTART: Final = "stop all that use the store, then restart"

_OPENING_SECONDS: Final = 1.0
"""Another process that opens or closes the store holds a lock before its log is there, for some milliseconds."""
_POLL_SECONDS: Final = 0.02
_TOGETHER_NS: Final = 10_000_000_000
_HEADER, _FRAME = 32, 24
"""Bytes of the log's header, and of each frame's before its page (sqlite.org/fileformat2.html, section 4)."""

Identity = tuple[int, int]
"""Device and inode."""


def make(path: str) -> None:
    """Create the database for its owner only, unless it exists. Raises StoreUnavailable."""
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


def is_there(path: str) -> bool:
    """Whether there is a file. Raises StoreUnavailable where this cannot be told: a store that this user may not see
    is not a missing one.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise StoreUnavailable(
            f"the key store {path} cannot be used: this user may not enter its folder; use the user that owns it"
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"the key store {path} cannot be used: {error.strerror}") from error
    return True


def refuse_unwritable(path: str) -> None:
    """Raises StoreUnavailable."""
    if os.path.isdir(path):
        raise StoreUnavailable(f"the key store {path} is a folder: name a file in it")
    for place in (path, os.path.dirname(os.path.abspath(path))):
        if not os.access(place, os.R_OK | os.W_OK):
            raise StoreUnavailable(f"the key store {path} cannot be used: this user may not read and write {place}")


class OpenedFiles:
    """The files that were opened. Others in their places hold other keys, and their revocations would be missed."""

    def __init__(self, path: str) -> None:
        """To be made once the store was read, because that is when SQLite opens the log. Raises StoreUnavailable."""
        self.path = path
        self._database = self._identity_of_database()
        self._companions = [_identity(path + suffix) for suffix in COMPANIONS]
        self.index = self._descriptor_of_index()
        """SQLite's own descriptor of the -shm file, to read from as long as a connection is open. See there."""

    def check_database(self) -> None:
        """Raises StoreUnavailable when the path no longer leads to the file that was opened. About a microsecond."""
        if self._identity_of_database() != self._database:
            raise StoreUnavailable(f"the key store {self.path} was replaced while in use: restart the sidecar")

    def check(self) -> None:
        """Raises StoreUnavailable when one of the three files is not the one that was opened."""
        self.check_database()
        for suffix, opened in zip(COMPANIONS, self._companions, strict=True):
            if (found := _identity(self.path + suffix)) != opened:
                happened = "is gone" if found is None else "was replaced"
                raise StoreUnavailable(f"{self.path}{suffix} {happened} while the key store is in use: {RESTART}")

    def replaced(self) -> bool:
        """Whether another process may write to a log of its own, which must be left alone."""
        found = [_identity(self.path + suffix) for suffix in COMPANIONS]
        return any(new not in (None, old) for new, old in zip(found, self._companions, strict=True))

    def _descriptor_of_index(self) -> int:
        """One of our own could never be closed: with it, the system would drop every lock that SQLite holds on the file
        (sqlite.org/howtocorrupt.html, section 2.2).
        """
        index = self._companions[1]
        with suppress(OSError):
            for number in map(int, os.listdir("/dev/fd")):
                with suppress(OSError):  # The list's own is closed by now.
                    if _identity(number) == index is not None:
                        return number
        raise StoreUnavailable(
            f"{self.path}-shm cannot be watched: mount /proc (/dev/fd lists what is open), then restart"
        )

    def _identity_of_database(self) -> Identity:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise StoreUnavailable(
                f"the key store {self.path} is gone or out of reach ({error.strerror}): restore it and restart"
            ) from error
        return found.st_dev, found.st_ino


def refuse_strays(path: str) -> None:
    """Raises StoreUnavailable for a database that is not one with its log: taken away from users, or not its own."""
    _refuse_lost_log(path)
    _refuse_foreign_log(path)


def _refuse_lost_log(path: str) -> None:
    end = time.monotonic() + _OPENING_SECONDS
    while _lacks_companions(path) and _is_used(path):
        if time.monotonic() > end:
            raise StoreUnavailable(
                f"the -wal or -shm file of the key store {path} is gone while another process uses it: {RESTART}"
            )
        time.sleep(_POLL_SECONDS)


def _lacks_companions(path: str) -> bool:
    return any(_identity(path + suffix) is None for suffix in COMPANIONS)


def _is_used(path: str) -> bool:
    """Whether a process, this one included, holds the lock that SQLite keeps on an open database in WAL mode.

    From the kernel's list, because asking by a descriptor of our own would give up this process's locks on the file.
    False where there is no list.
    """
    try:
        found = os.stat(path)
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return False
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(file in line.split() for line in locks)


def _refuse_foreign_log(path: str) -> None:
    """SQLite would replay a log that was left by a crash over a backup that was copied into the database's place.

    The database is written after its log only by a checkpoint, which writes pages of the log in ascending order. So the
    log's lowest page is in a database that is newer than the log, or the database was not written by a checkpoint.
    """
    log = f"{path}-wal"
    try:
        if not _came_later(os.stat(path), os.stat(log)) or _is_used(path):
            return
        with open(path, "rb") as database, open(log, "rb") as frames:
            belongs = _holds_lowest_page(database, frames)
    except OSError:
        return
    if not belongs:
        raise StoreUnavailable(
            f"the key store {path} does not belong to {log}, which has the last changes of the store that was there "
            f"before. To use what was copied there, move {log} and {path}-shm away and restart; to use the one before, "
            f"put it back first. If nothing was copied, or all together, `touch {log}` says so"
        )


def _came_later(database: os.stat_result, log: os.stat_result) -> bool:
    """Whether the database was written, or put in its place, after the log.

    By the time of the change of status, which `cp -p`, `mv` and `tar` cannot set. A new owner or place sets it, too:
    where the log got one after its last write, the database may have got it just afterwards.
    """
    moved = log.st_ctime_ns != log.st_mtime_ns
    return database.st_ctime_ns - log.st_ctime_ns > (_TOGETHER_NS if moved else 0)


def _holds_lowest_page(database: BinaryIO, log: BinaryIO) -> bool:
    frames = list(_committed_frames(log))
    if not frames:
        return True
    size = frames[0][2]
    lowest = min(number for number, _, _ in frames)
    database.seek((lowest - 1) * size)
    page = database.read(size)
    return any(_read_at(log, at, size) == page for number, at, _ in frames if number == lowest)


def _committed_frames(log: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Page number, where the page stands in the log, and its size, for each frame of a transaction that ended."""
    header = log.read(_HEADER)
    if len(header) < _HEADER:
        return
    size, salts = struct.unpack(">I", header[8:12])[0], header[16:24]
    waiting: list[tuple[int, int, int]] = []
    at = _HEADER
    while len(frame := _read_at(log, at, _FRAME)) == _FRAME and frame[8:16] == salts and size:
        number, committed = struct.unpack(">II", frame[:8])
        waiting.append((number, at + _FRAME, size))
        if committed:
            yield from waiting
            waiting.clear()
        at += _FRAME + size


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _identity(file: str | int) -> Identity | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
