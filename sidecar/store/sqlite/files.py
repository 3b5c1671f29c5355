"""The files of a SQLite store: the database, its write-ahead log (`-wal`) and the log's index (`-shm`).

All three belong together. If the log is removed while processes use it, the next process to open the database gets a
log of its own: neither side sees the other's writes, and the last to close overwrites what the other wrote.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOENT
from pathlib import Path
from typing import BinaryIO, Final

from sidecar.keys.ports import StoreUnavailable

COMPANIONS: Final = ("-wal", "-shm")
RESTART: Final = "stop all that use the store, then restart"

_OPENING_SECONDS: Final = 1.0
"""A process that opens or closes the store holds a lock for some milliseconds before its log exists."""
_POLL_SECONDS: Final = 0.02
_TOGETHER_NS: Final = 10_000_000_000
_HEADER, _FRAME = 32, 24
"""Bytes of the log's header, and of each frame's before its page (sqlite.org/fileformat2.html, section 4)."""
_LOG_SALTS: Final = 16, 8
"""Offset and length in the log's header."""
_MODE_AT, _WAL_MODE = 18, b"\x02\x02"
"""Which versions of the format may write and read a database; 1 is one without a log (section 1.3.3)."""
_INDEX_HEADER, _INDEX_SALTS, _WRITTEN_AT, _WANTED_AT = 136, slice(32, 40), 96, 128

_LOCKED_AT, _LOCKED_BYTES = 0x40000000, 512
"""What SQLite locks of every database (sqlite.org/lockingv3.html)."""

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
    """Whether there is a file. Raises StoreUnavailable if that is unknown, as for a store that this user cannot see."""
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
    """The files that were opened. If others took their places, revocations in them would be missed."""

    def __init__(self, path: str) -> None:
        """Call after the first read, because that is when SQLite opens the log. Raises StoreUnavailable."""
        self.path = path
        self._database = self._identity_of_database()
        self._companions = [_identity(path + suffix) for suffix in COMPANIONS]
        self.index = self._descriptor_of_index()
        """SQLite's own descriptor of the -shm file, valid while a connection is open. See `_descriptor_of_index`."""

    def check_database(self) -> None:
        """Raises StoreUnavailable if the path no longer leads to the file that was opened.

        Takes about a microsecond.
        """
        if self._identity_of_database() != self._database:
            happened = "was replaced while in use: restart the sidecar"
            raise StoreUnavailable(f"the key store {self.path} {happened}", cause=happened)

    def check(self) -> None:
        """Raises StoreUnavailable if one of the three files is not the one that was opened."""
        self.check_database()
        for suffix, opened in zip(COMPANIONS, self._companions, strict=True):
            if (found := _identity(self.path + suffix)) != opened:
                happened = "is gone" if found is None else "was replaced"
                raise StoreUnavailable(
                    f"{self.path}{suffix} {happened} while the key store is in use: {RESTART}",
                    cause=f"cannot be used, its {suffix} file {happened} while in use: {RESTART}",
                )

    def replaced(self) -> bool:
        """Whether another process may have its own log, which must not be touched."""
        found = [_identity(self.path + suffix) for suffix in COMPANIONS]
        return any(new not in (None, old) for new, old in zip(found, self._companions, strict=True))

    def _descriptor_of_index(self) -> int:
        """SQLite's descriptor, because closing one of our own would drop every lock that SQLite holds on the file
        (sqlite.org/howtocorrupt.html, section 2.2).
        """
        index = self._companions[1]
        with suppress(OSError):
            for number in map(int, os.listdir("/dev/fd")):
                with suppress(OSError):  # The descriptor of the listing is already closed.
                    if _identity(number) == index is not None:
                        return number
        raise StoreUnavailable(
            f"{self.path}-shm cannot be watched: mount /proc (/dev/fd lists what is open), then restart"
        )

    def _identity_of_database(self) -> Identity:
        try:
            found = os.stat(self.path)
        except OSError as error:
            happened = (
                f"is gone or out of reach ({error.strerror}): put it back, or restore "
                "a backup with `sidecar store restore FILE`, and restart"
            )
            raise StoreUnavailable(f"the key store {self.path} {happened}", cause=happened) from error
        return found.st_dev, found.st_ino


def refuse_strays(path: str) -> None:
    """Raises StoreUnavailable if the log is gone while a process uses the database, or belongs to another one."""
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

    False if the kernel has no list of locks.
    """
    return any(True for _ in _locks_of(path))


def _locks_of(path: str) -> Iterator[list[str]]:
    """The locks on a file, in the words of /proc/locks (proc(5)): number, kind, mode, access, process, file, …

    From the kernel's list, because closing a descriptor of our own would release this process's locks on the file.
    """
    try:
        found = os.stat(path)
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    yield from (words for words in map(str.split, locks) if file in words)


def holders(path: str) -> dict[int, str]:
    """The other processes that have the database open: process id to program name, if that can be read.

    Processes in other containers are not listed; see `exclusively`.
    """
    pids = {int(words[4]) for words in _locks_of(path) if words[1] == "POSIX" and words[4].isdigit()}
    return {pid: _program(pid) for pid in sorted(pids - {os.getpid(), 0})}


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def refuse_used(path: str) -> None:
    """Raises StoreUnavailable, naming the process, if another one has the database open."""
    if found := holders(path):
        who = " and ".join(f"process {pid}" + (f" ({program})" if program else "") for pid, program in found.items())
        raise StoreUnavailable(f"the key store {path} is used by {who}: stop it first")


def in_use(path: str) -> StoreUnavailable:
    """The exception if it is unknown which process uses the store."""
    return StoreUnavailable(f"the key store {path} is used by another process: stop it first")


@contextmanager
def exclusively(path: str) -> Iterator[None]:
    """Keep other processes from opening the database. Raises StoreUnavailable if one has it open, in any container.

    Not for a process that has the database open itself: it would lose its own locks. Also raises OSError.
    """
    refuse_used(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED_BYTES, _LOCKED_AT)
        except OSError as error:
            raise in_use(path) from error
        yield
    finally:
        os.close(descriptor)


def _refuse_foreign_log(path: str) -> None:
    """SQLite would replay a log that was left by a crash over a backup that was copied into the database's place."""
    log = f"{path}-wal"
    try:
        if _is_used(path):
            return
        is_later = _came_later(os.stat(path), os.stat(log))
        with open(path, "rb") as database, open(log, "rb") as frames:
            mode = _read_at(database, _MODE_AT, len(_WAL_MODE))
            # Each database with a log says in its header that it has one. Backups say that they have none.
            has_no_log = len(mode) == len(_WAL_MODE) and mode != _WAL_MODE and any(_committed_frames(frames))
            belongs = not has_no_log and (not is_later or _was_checkpointed(database, frames, f"{path}-shm"))
    except OSError:
        return
    if not belongs:
        touch = f". If nothing was copied, or all together, `touch {log}` says so"
        raise StoreUnavailable(
            f"the key store {path} does not belong to {log}, which has the last changes of the store that was there "
            f"before. To use a backup, run `sidecar store restore FILE`. To use what was copied there, move "
            f"{log} and {path}-shm away and restart; to use the one before, put it back first"
            f"{'' if has_no_log else touch}"
        )


def _came_later(database: os.stat_result, log: os.stat_result) -> bool:
    """Whether the database was written, or put in its place, after the log.

    Compares the times of the last status change, which `cp -p`, `mv` and `tar` cannot set. A new owner or path also
    sets it: if the log got one after its last write, the database may have got it just afterwards.
    """
    moved = log.st_ctime_ns != log.st_mtime_ns
    return database.st_ctime_ns - log.st_ctime_ns > (_TOGETHER_NS if moved else 0)


def _was_checkpointed(database: BinaryIO, log: BinaryIO, index: str) -> bool:
    """Whether a checkpoint can have written a database that is newer than its log.

    A checkpoint writes the newest frame of each page, in ascending order of pages. So the lowest of the pages that it
    was to write is in the database, and so is every page that it has written.
    """
    frames = list(_committed_frames(log))
    if not frames:
        return True
    size, progress = frames[0][2], _progress(index, _read_at(log, *_LOG_SALTS))
    counts: dict[int, list[int]] = {}
    for count, (number, _, _) in enumerate(frames, 1):
        counts.setdefault(number, []).append(count)

    def held(number: int) -> list[int]:
        """Which frames of the page are in the database."""
        page = _read_at(database, (number - 1) * size, size)
        return [count for count in counts[number] if _read_at(log, frames[count - 1][1], size) == page]

    if progress is None:
        # Nobody knows how far the checkpoint went: older frames may have been the newest ones then.
        return bool(held(min(counts)))
    written, wanted = progress
    lowest = min((number for number in counts if counts[number][-1] <= wanted), default=None)
    return lowest is not None and all(
        counts[number][-1] in found
        if number == lowest or counts[number][-1] <= written
        else not found or found[0] <= wanted
        for number, found in ((number, held(number)) for number in counts)
    )


def _progress(index: str, salts: bytes) -> tuple[int, int] | None:
    """How many frames of the log checkpoints have written, and were to write (sqlite.org/walformat.html, section 2.1).

    None without the index of this log.
    """
    try:
        header = Path(index).read_bytes()[:_INDEX_HEADER]
    except OSError:
        return None
    if len(header) < _INDEX_HEADER or header[_INDEX_SALTS] != salts:
        return None
    return struct.unpack_from("=I", header, _WRITTEN_AT)[0], struct.unpack_from("=I", header, _WANTED_AT)[0]


def _committed_frames(log: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Page number, where the page stands in the log, and its size, for each frame of a transaction that ended."""
    header = _read_at(log, 0, _HEADER)
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
