"""How other processes on this machine see and control a running sidecar.

Processes that use the same store see its mark. `sidecar drain` uses its socket, a Unix socket that only its user may
connect to: a client sends `drain` or `undo` and a line feed, and gets one line that begins with `ok` or `refused`. It
does not speak HTTP: nothing that a browser or a proxy can be made to send may take a sidecar out of service.
"""

import asyncio
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from sidecar.runtime.serving import StartError
from sidecar.runtime.tasks import Drainer

DRAIN: Final = "drain"
UNDO: Final = "undo"
ANSWER_SECONDS: Final = 5.0
"""For a command or a response, which arrives immediately or never."""
_LONGEST: Final = 64
_AT_ONCE: Final = 8
_MODE: Final = 0o600
_log = logging.getLogger(__name__)


_MARKS_AT: Final = 1 << 62
"""The offset of the marks: far beyond the end of any file, and beyond the bytes that SQLite locks."""
_MOST_MARKS: Final = 64
_LOCK: Final = struct.Struct("hhqqi4x")
"""`struct flock` of Linux on 64 bits: type, whence, start, length, process."""


@contextmanager
def served_store(path: str) -> Iterator[Callable[[], Awaitable[int]]]:
    """Mark the store as used by this process, and yield a function that counts such processes, including this one.

    Enter it after opening the store, which checks whether others use it, and leave it after closing the store. A mark
    is a lock on one byte, of an open file description (fcntl(2), F_OFD_SETLK): it ends with its process in any case, is
    visible from other containers, and does not conflict with SQLite's own locks. But the kernel drops those when any
    descriptor of the file is closed, so this one stays open as long as SQLite's.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # It is gone since then, which the store itself reports.
        yield _alone
        return

    async def count() -> int:
        return 1 + sum(_marked_by_another(descriptor, number) for number in range(_MOST_MARKS))

    try:
        any(_marks(descriptor, number) for number in range(_MOST_MARKS))
        yield count
    finally:
        os.close(descriptor)


async def _alone() -> int:
    return 1


def _marks(descriptor: int, number: int) -> bool:
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _MARKS_AT + number, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        # A file system without such locks has no marks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _marked_by_another(descriptor: int, number: int) -> bool:
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _MARKS_AT + number, 1, 0)
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
    except OSError:
        return False
    kind: int = _LOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK


class Sharing:
    """How many sidecars use the store `name` and count quotas in their own memory, as last seen.

    count: returns the number, including this process. Raises StoreUnavailable. kept: whether counts are saved in the
    store while this is the only one.
    """

    def __init__(self, name: str, count: Callable[[], Awaitable[int]], *, kept: bool = True) -> None:
        self._name, self._count, self._kept = name, count, kept
        self.processes = 1

    async def look(self) -> bool:
        """Whether counts must not be saved there, because other sidecars use the store. Logs a change of this.

        Raises StoreUnavailable.
        """
        before, self.processes = self.processes, await self._count()
        if before == 1 < self.processes:
            _log.warning("sidecar: %s", self._sentence())
        elif before > 1 == self.processes:
            _log.warning("sidecar: no other sidecar serves the store %s any more: counts survive a restart", self._name)
        return not self._kept or self.processes > 1

    def remarks(self) -> Sequence[str]:
        """A line if there is something to report."""
        return [f"store: {self._sentence()}"] if self.processes > 1 else []

    def _sentence(self) -> str:
        others = "another sidecar serves" if self.processes == 2 else f"{self.processes - 1} other sidecars serve"
        return f"{others} the store {self._name}: each counts quotas separately, and counts do not survive a restart"


class NoAnswer(Exception):
    """The process did not carry out the command. The message says why."""


def ask(path: str, word: str) -> str:
    """Send DRAIN or UNDO to the process behind the socket, and return its response. Blocks. Raises NoAnswer."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_SECONDS)
            client.connect(path)
            client.sendall(f"{word}\n".encode())
            answer = b"".join(iter(lambda: client.recv(1024), b"")).decode("utf-8", "replace").strip()
    except TimeoutError:
        raise NoAnswer(f"the sidecar behind {path} does not answer within {ANSWER_SECONDS:g} s") from None
    except OSError as error:
        raise NoAnswer(_unreachable(path, error)) from None
    verdict, _, text = answer.partition(" ")
    if verdict != "ok":
        raise NoAnswer(text or f"the process that listens on {path} is not a sidecar")
    return text


def _unreachable(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"no sidecar listens on {path}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} is for the user that the sidecar runs as (or root): run this command as that user"
    return f"cannot use {path}: {error.strerror or error}"


@asynccontextmanager
async def control_socket(path: str, drainer: Drainer) -> AsyncIterator[None]:
    """Listens inside the context. Raises StartError, above all if another process listens there.

    path: if empty, no socket is opened.
    """
    if not path:
        yield
        return
    try:
        listening = _bound(path)
    except OSError as error:
        raise StartError(f"cannot listen on {path} (drain.socket): {error.strerror or error}") from error
    ours = os.stat(path).st_ino
    server = await asyncio.start_unix_server(_Control(drainer).serve, sock=listening, limit=_LONGEST)
    try:
        yield
    finally:
        server.close()
        with suppress(OSError):  # Another process may have put its own socket there.
            if os.stat(path).st_ino == ours:
                os.remove(path)


def _bound(path: str) -> socket.socket:
    """Raises OSError, and StartError if there is anything but a socket left by a dead process."""
    _make_room(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        # Set before binding, so that others can never connect; Linux takes the mode from here.
        os.fchmod(listening.fileno(), _MODE)
        listening.bind(path)
        os.chmod(path, _MODE)
        listening.listen(_AT_ONCE)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _make_room(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise StartError(f"cannot listen on {path} (drain.socket): a file is there, which is not a socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        with suppress(ConnectionRefusedError):
            with suppress(BlockingIOError):  # A process listens, but is busy.
                client.connect(path)
            raise StartError(f"cannot listen on {path} (drain.socket): another process does; give each sidecar its own")
    os.remove(path)


class _Control:
    def __init__(self, drainer: Drainer) -> None:
        self._drainer, self._open = drainer, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. Too long, too slow or too many are closed without a response."""
        self._open += 1
        try:
            if self._open <= _AT_ONCE:
                async with asyncio.timeout(ANSWER_SECONDS):
                    word = (await reader.readuntil()).strip()
                    writer.write(f"{self._answer(word)}\n".encode())
                    await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, word: bytes) -> str:
        if word == DRAIN.encode():
            return self._drain()
        return self._undo() if word == UNDO.encode() else "refused unknown word"

    def _drain(self) -> str:
        if self._drainer.begun:
            return "ok Shutting down already."
        if not self._drainer.announce():
            return "ok Draining already; `sidecar drain --undo` takes it back."
        _log.warning("sidecar: draining (sidecar drain): not ready, every response closes its connection")
        return (
            "ok Draining: /readyz is 503 and every response closes its connection; new connections are still served. "
            "SIGTERM ends the process, `sidecar drain --undo` takes this back."
        )

    def _undo(self) -> str:
        if self._drainer.begun:
            return "refused the sidecar is shutting down, which cannot be undone"
        if not self._drainer.undo():
            return "ok Not draining."
        _log.warning("sidecar: no longer draining (sidecar drain --undo)")
        return "ok Ready again: connections are kept open."
