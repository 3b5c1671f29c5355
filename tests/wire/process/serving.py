"""A sidecar process started by hand: with any standard streams, any limits, and listeners on Unix sockets."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness import forks
from tests.harness.keys import Keys
from tests.harness.processes import ROOT, STOP_SECONDS, clean_environ
from tests.harness.waiting import until

CONFIG = """\
listen: unix:FOLDER/data.sock
ops: unix:FOLDER/ops.sock
upstream: http://127.0.0.1:1
store: sqlite://FOLDER/keys.db
access_log: off
drain: {delay: 0s, timeout: 5s}
reload: {watch: false}
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read]}
"""
CLIENT_SECONDS = 20.0
"""For a response that arrives immediately or never."""
"""Polling without a pause would take CPU from the awaited process."""


def prepare(folder: Path) -> None:
    """A configuration and a store of one key."""
    (folder / "sidecar.yaml").write_text(CONFIG.replace("FOLDER", str(folder)), encoding="utf-8")
    Keys(folder / "sidecar.yaml", folder / "keys.db").make_store("first")


def environ(**more: str) -> dict[str, str]:
    return {**clean_environ(**more), "PYTHONPATH": str(ROOT)}


class Served:
    """`sidecar serve` in `folder`, where its sockets are. popen: of subprocess.Popen.

    forked: starts quickly, behind a process that passes on signals and ends with it; its pid is that process's.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str] = (),
        command: Sequence[str] = (),
        *,
        forked: bool = False,
        **popen: Any,
    ) -> None:
        words = ["serve", "-c", "sidecar.yaml", *arguments]
        if forked:
            command, popen["pass_fds"] = forks.command(*words), [forks.server().fileno()]
        command = command or [sys.executable, "-m", "sidecar", *words]
        self.process = subprocess.Popen(command, **{"cwd": folder, "env": environ(), **popen})
        self._folder = folder

    def wait_until_ready(self) -> None:
        """Wait until both listeners accept connections."""
        for name in ("data", "ops"):
            until(lambda name=name: self.process.poll() is not None or self.listens(name))  # type: ignore[misc]
        assert self.process.returncode is None, f"ended with {self.process.returncode}"

    def listens(self, name: str) -> bool:
        try:
            self.connect(name).close()
        except OSError:
            return False
        return True

    def connect(self, name: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(CLIENT_SECONDS)
        try:
            client.connect(str(self._folder / f"{name}.sock"))
        except OSError:
            client.close()
            raise
        return client

    def exchange(self, name: str, raw: bytes) -> bytes:
        """Everything until the other end closes. Raises TimeoutError."""
        with self.connect(name) as client:
            client.sendall(raw)
            return b"".join(iter(lambda: client.recv(65536), b""))

    def get(self, target: str, *headers: str) -> bytes:
        """Of the ops listener."""
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
        return self.exchange("ops", "\r\n".join(lines).encode())

    def metrics(self) -> dict[str, float]:
        """By sample, named with its labels as in the exposition."""
        lines = [line.rpartition(" ") for line in self.get("/metrics").decode().splitlines()]
        return {name: float(value) for name, _, value in lines if name.startswith(("sidecar_", "process_"))}

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class FullPipe:
    """A full pipe that is never read."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.filled = 0
        for size in (4096, 1):
            try:
                while True:
                    self.filled += os.write(self.write_end, b"-" * size)
            except BlockingIOError:
                continue
        os.set_blocking(self.write_end, True)

    def close_write_end(self) -> None:
        """Close our end; the process keeps its own."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        os.close(self.read_end)
