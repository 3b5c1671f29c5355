"""Standard error of a serving process: written by a thread, because its reader may be slow or stuck.

Everything in Python that writes to stderr goes through `sys.stderr`: log lines, warnings, tracebacks. So that is
replaced, not the handlers of logging.
"""

import io
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, RLock, Thread
from typing import Final, TextIO

from sidecar.core.units import counted
from sidecar.telemetry.access_log import descriptor_writer, lines_writer

MAX_CHARS: Final = 256 * 1024
"""Most characters that wait to be written."""
END_SECONDS: Final = 1.0
"""How long the process waits at its end for unwritten text."""


class QueuedText(io.TextIOBase):
    """A text stream whose `write` never blocks: a thread passes whole lines to `deliver`, which may block.

    Lines beyond `max_chars`, and those for which `deliver` raises OSError, are dropped and counted. Once there is room
    again, a line says how many. Any thread may write. encoding, errors: as in `io.TextIOWrapper`.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], None],
        *,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
        max_chars: int = MAX_CHARS,
    ) -> None:
        self.dropped = 0
        """Lines."""
        self._deliver, self._encoding, self._errors, self._max_chars = deliver, encoding, errors, max_chars
        # Reentrant: a finalizer that runs while the lock is held may write a warning.
        self._changed = Condition(RLock())
        self._waiting: deque[str] = deque()
        self._chars = 0
        self._unfinished = ""
        self._reported = 0
        self._ending = False
        self._thread = Thread(target=self._work, name="stderr", daemon=True)  # A stuck one must not keep the process.
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return self._errors

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Queue the text; raises TypeError for anything else."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._changed:
            whole, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
            self._take(whole + newline)
            if len(self._unfinished) > self._max_chars:
                self._drop_unfinished()
        return len(text)

    def end(self, seconds: float) -> None:
        """Write the waiting text, for at most `seconds`. Text written to the stream afterwards is lost."""
        with self._changed:
            self._take(self._unfinished)
            self._unfinished, self._ending = "", True
            self._changed.notify()
        self._thread.join(seconds)

    def _take(self, lines: str) -> None:
        """Take whole lines: a line is written or dropped, never cut."""
        if not lines:
            return
        if self._chars + len(lines) > self._max_chars:
            self.dropped += max(lines.count("\n"), 1)
            self._changed.notify()
            return
        self._chars += len(lines)
        self._waiting.append(lines)
        self._changed.notify()

    def _drop_unfinished(self) -> None:
        self.dropped += 1
        self._unfinished = ""

    def _work(self) -> None:
        while (lines := self._next()) is not None:
            try:
                self._deliver(lines.encode(self._encoding, self._errors))
            except (OSError, ValueError):  # The reader is gone, or it is closed: nowhere to report it.
                self.dropped += lines.count("\n")
                self._reported = self.dropped

    def _next(self) -> str | None:
        """All waiting text, as soon as there is some; None at the end."""
        with self._changed:
            while not self._waiting and not self._unreported and not self._ending:
                self._changed.wait()
            lines, unreported = "".join(self._waiting), self._unreported
            self._waiting.clear()
            self._chars, self._reported = 0, self.dropped
        if unreported:
            lines += f"sidecar: {counted(unreported, 'log line')} dropped: stderr was not read, or too slowly\n"
        return lines or None

    @property
    def _unreported(self) -> int:
        return self.dropped - self._reported


@contextmanager
def queued_stderr(lock: int | None = None) -> Iterator[QueuedText]:
    """Inside the context, `sys.stderr` never blocks. Its text is written before the context ends, or discarded.

    lock: as in `lines_writer`, if other processes write there.
    """
    original: TextIO = sys.stderr
    original.flush()
    queued = QueuedText(
        descriptor_writer(original.fileno()) if lock is None else lines_writer(original.fileno(), lock),
        encoding=original.encoding or "utf-8",
        errors=original.errors or "backslashreplace",
    )
    sys.stderr = queued
    try:
        yield queued
    finally:
        queued.end(END_SECONDS)
        sys.stderr = original
