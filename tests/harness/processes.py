"""Processes that tests start: waited for by what they print, stopped by a signal."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from threading import Condition, Thread
from typing import IO

from tests.harness.forks import ForkedProcess

REMEMBERS = "SIDECAR_KNOWN_REQUESTS"
"""With `off`, no request is known by its bytes: for the whole run of the tests."""
ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
"""Both far beyond what a slow machine needs: only a process that never starts or ends takes this long."""


class Lines:
    """The lines of a pipe, gathered as they come, so that the process never blocks on it."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: list[str] = []
        self._ended = False
        self._changed = Condition()
        self._thread = Thread(target=self._gather, daemon=True)
        self._thread.start()

    def all(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    def wait_for(self, wanted: Callable[[str], bool], *, timeout: float = READY_SECONDS) -> str | None:
        """The first line that is `wanted`; None when the pipe ends or the time is over without it."""
        deadline = time.monotonic() + timeout
        with self._changed:
            looked_at = 0
            while True:
                for line in self._lines[looked_at:]:
                    if wanted(line):
                        return line
                looked_at = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def join(self) -> None:
        """Raises AssertionError if something that the process left behind still holds the pipe."""
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "what the process started is still running"
        self._pipe.close()

    def _gather(self) -> None:
        for line in self._pipe:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def python(arguments: Sequence[str], environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """`python -m …` in the repository."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


class Process:
    """A running process, its output gathered."""

    def __init__(self, process: "subprocess.Popen[str] | ForkedProcess") -> None:
        self._process = process
        assert process.stdout and process.stderr
        self.stdout, self.stderr = Lines(process.stdout), Lines(process.stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status; every line is gathered by then. Kills what does not end."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self.stdout.join()
            self.stderr.join()

    def stop(self, number: int = SIGTERM) -> int:
        """A signal, and the exit status. Also of a process that has ended already."""
        if self._process.returncode is None:
            self.signal(number)
            return self.wait()
        return self._process.returncode

    def failure(self) -> AssertionError:
        """The exception for a failed start: stops the process, and includes its standard error."""
        status = self.stop()
        told = "\n".join(self.stderr.all()[-40:])
        return AssertionError(f"not ready (exit status {status}); its standard error:\n{told}")


def clean_environ(**more: str) -> dict[str, str]:
    """The environment without anything that configures a sidecar, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_") or name == REMEMBERS}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}
