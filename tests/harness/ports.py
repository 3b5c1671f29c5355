"""Ports for programs that need a given port, and that do not say when they listen on it."""

import random
import socket
import subprocess
import time
from contextlib import suppress

from tests.harness.processes import READY_SECONDS

_PORTS = range(20_000, 32_000)
"""Below the system's ephemeral ports, so that none is taken before it is bound."""


def free_port() -> int:
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def comes_to_listen(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Waits for it; False if the process has ended or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    return False
