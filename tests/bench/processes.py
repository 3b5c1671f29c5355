"""Processes of the benchmark: pinned, watched through /proc, ended for certain."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.ports import comes_to_listen
from tests.harness.processes import READY_SECONDS

SERVER_CORE, LOAD_CORE = 0, 1


class Unavailable(Exception):
    """Something cannot take part. The message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that listens on `port`, with its children."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, of all threads, those that ended too. As fine as the scheduler's."""
        return sum(_cpu_seconds(pid) for pid in self._tree())

    def memory_kib(self, field: str) -> int:
        """A field of /proc/PID/status (VmRSS, VmHWM), summed over the tree."""
        return sum(_status_kib(pid, field) for pid in self._tree())

    def _tree(self) -> list[int]:
        found, pending = [], [self.pid]
        while pending:
            pid = pending.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pending += map(int, children.read_text().split())
        return found


@contextlib.contextmanager
def running(
    command: Sequence[str], *, port: int, core: int, output: Path, folder: Path | None = None
) -> Iterator[Process]:
    """`command` on `core`, once it accepts connections on `port`. Raises Unavailable when it does not."""
    with output.open("wb") as stdout, output.with_suffix(".err").open("wb") as stderr:
        # In a session of its own: Ctrl-C is for the benchmark, which then ends what it started.
        popen = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            start_new_session=True,
        )
    try:
        _await_listener(popen, port, output.with_suffix(".err"))
        yield Process(pid=popen.pid, port=port)
    finally:
        _end(popen)


def _await_listener(popen: "subprocess.Popen[bytes]", port: int, errors: Path) -> None:
    if comes_to_listen(popen, port):
        return
    if popen.poll() is None:
        raise Unavailable(f"did not listen within {READY_SECONDS:.0f} s")
    told = errors.read_text(errors="replace").strip().splitlines()
    raise Unavailable(f"exited with {popen.returncode} at start: {' | '.join(told[-3:])[:300]}")


def _end(popen: "subprocess.Popen[bytes]") -> None:
    for signum, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(patience)
            return


def _cpu_seconds(pid: int) -> float:
    # What clock_getcpuclockid(3) returns on Linux. /proc/PID/stat counts in hundredths of a second, and the schedstat
    # of threads forgets those that ended.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _status_kib(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0
