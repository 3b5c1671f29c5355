"""The parent of `sidecar serve --workers`: starts processes, restarts those that die, and passes signals on.

It has no event loop and no thread, so that it can fork at any time, and nothing that a client sends reaches it. It
holds the listening sockets: a waiting connection waits for any worker, even if one of them dies. Its children are the
control process (number 0) and the workers (1 and up); see `runtime.workers`.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from sidecar.runtime.workers import Begin, receive, send

HURRY: Final = signal.SIGUSR1
"""What the parent sends after a second signal to stop.

Service managers send SIGTERM to every process of a service (systemd.kill(5)), so a child gets it twice, which must not
cut off running requests.
"""

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_CONTROL: Final = 0
_PAUSE_SECONDS: Final = 0.05
"""Pause before a process that had begun to serve is restarted; doubled after each that did not get that far."""
_LONGEST_PAUSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a child inherits from the parent. life: closes when the parent dies.

    ends: the control process's ends of the sockets to each worker, or this worker's end. parent: control process only.
    """

    number: int
    life: int
    ends: Sequence[socket.socket]
    parent: socket.socket | None
    early: Sequence[int]
    """SIGHUPs that came before it could reload."""
    before: Begin | None = None
    """What was in force in the control process before this one, which has died; of the control process only."""


class _Child:
    """The processes of one number, one at a time. pid: 0 while none runs."""

    def __init__(self, number: int) -> None:
        self.number, self.pid, self.failures = number, 0, 0
        self.up_at: float | None = None
        self.due_at: float | None = None
        """When to start it."""


class Supervisor:
    """run: what a child does; returns its exit status. release: closes what only the children should hold.

    log: receives lines for the operator.
    """

    def __init__(
        self, workers: int, run: Callable[[Seat], int], *, release: Callable[[], None], log: Callable[[str], None]
    ) -> None:
        self._run, self._release, self._log = run, release, log
        self._children = [_Child(number) for number in range(workers + 1)]
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
        self._to_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._life = os.pipe()
        self._wake = socket.socketpair()
        for end in (self._to_control[0], *self._wake):
            end.setblocking(False)
        self._signals, self._missed = list[int](), list[int]()
        self._in_force: Begin | None = None
        self._is_starting, self._is_stopping, self._is_hurried = True, False, False
        self._status = 0

    def serve(self) -> int:
        """Run until all processes have ended. Returns the exit status."""
        with self._handlers():
            self._children[_CONTROL].due_at = 0.0
            while self._is_needed():
                self._start_due()
                self._wait()
                self._reap()
                self._read()
                while self._signals:
                    self._handle(self._signals.pop(0))
        return self._status

    def _is_needed(self) -> bool:
        return any(child.pid or child.due_at is not None for child in self._children)

    @contextmanager
    def _handlers(self) -> Iterator[None]:
        """Signal handlers until the parent has no more children; a child has its own."""
        before = {number: signal.signal(number, self._on_signal) for number in _HANDLED}
        woken = signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
        yield
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _wait(self) -> None:
        due = [child.due_at for child in self._children if child.due_at is not None]
        seconds = max(min(due) - time.monotonic(), 0.0) if due else None
        select.select([self._wake[0], self._to_control[0]], [], [], seconds)
        with suppress(BlockingIOError):
            while self._wake[0].recv(4096):
                pass

    # Children.

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.due_at is not None and child.due_at <= now:
                child.due_at = None
                self._fork(child)

    def _fork(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_HANDLED, HURRY})
        child.pid, child.up_at = os.fork(), None
        if not child.pid:
            self._become(child.number)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if child.number == _CONTROL:
            self._missed.clear()

    def _become(self, number: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        early = list(self._missed) if number == _CONTROL else []
        for handled in (*_HANDLED, HURRY):
            signal.signal(handled, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, lambda signum, _: early.append(signum))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_HANDLED, HURRY})
        # Ctrl-C reaches the whole process group of a terminal: only the parent reacts, and passes it on.
        os.setpgid(0, 0)
        sys.exit(self._run(self._seat(number, early)))

    def _seat(self, number: int, early: Sequence[int]) -> Seat:
        """Close what does not belong to this child."""
        ours, its = self._to_control
        for unused in (*self._wake, ours):
            unused.close()
        os.close(self._life[1])
        if number == _CONTROL:
            for _, worker in self._pairs:
                worker.close()
            ends = [control for control, _ in self._pairs]
            before = self._in_force
            return Seat(number=number, life=self._life[0], ends=ends, parent=its, early=early, before=before)
        its.close()
        mine = self._pairs[number - 1][1]
        for end in (end for pair in self._pairs for end in pair if end is not mine):
            end.close()
        return Seat(number=number, life=self._life[0], ends=[mine], parent=None, early=early)

    def _reap(self) -> None:
        """Process 1 of a container also reaps other processes' children."""
        with suppress(ChildProcessError):
            while True:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                child = next((child for child in self._children if child.pid == pid), None)
                if child is not None:
                    self._ended(child, os.waitstatus_to_exitcode(wait_status))

    def _ended(self, child: _Child, status: int) -> None:
        pid, child.pid = child.pid, 0
        if child.number != _CONTROL:
            send(self._to_control[0], "ended", child.number, pid)
        if self._is_stopping:
            return
        if self._is_starting:
            self._status = status if status > 0 else 1
            self._stop(signal.SIGINT)
            return
        child.failures = 0 if child.up_at is not None else child.failures + 1
        pause = min(_PAUSE_SECONDS * 2**child.failures, _LONGEST_PAUSE_SECONDS)
        child.due_at = time.monotonic() + pause
        who = f"worker {child.number}" if child.number else "the control process"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._log(f"sidecar: {who} (process {pid}) {how}; it is started again in {pause:g} s")

    # Messages and signals.

    def _read(self) -> None:
        with suppress(BlockingIOError, EOFError):
            while True:
                pid, word, number, content = receive(self._to_control[0])
                match word:
                    case "up" if pid == self._children[_CONTROL].pid:
                        self._control_up()
                    case "worker up" if content == self._children[number].pid:
                        self._children[number].up_at = time.monotonic()
                    case "all up":
                        self._is_starting = False
                    case "in force" if pid == self._children[_CONTROL].pid:
                        self._in_force = content

    def _control_up(self) -> None:
        """Start workers once the store is open and quotas are restored."""
        self._children[_CONTROL].up_at = time.monotonic()
        for child in self._children:
            if not child.pid and child.due_at is None and not self._is_stopping:
                child.due_at = 0.0

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP and not self._children[_CONTROL].pid:
            self._missed.append(number)
        elif number == signal.SIGHUP:
            self._signal([self._children[_CONTROL]], signal.SIGHUP)
        elif not self._is_stopping:
            self._stop(number)
        elif not self._is_hurried:
            self._is_hurried = True
            self._signal(self._children, HURRY)

    def _stop(self, number: int) -> None:
        """Let each finish running requests. The last one to close the sockets is the last that accepts."""
        self._is_stopping = True
        self._release()
        for child in self._children:
            child.due_at = None
        self._signal(self._children, number)

    def _signal(self, children: Sequence[_Child], number: int) -> None:
        for child in children:
            if child.pid:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)
