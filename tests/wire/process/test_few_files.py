"""A process with a low open file limit: fewer connections, counted refusals, and responsive operator listeners."""

import os
import re
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.waiting import until
from tests.wire.process.serving import Served, prepare

FEW = 128
MANY = 300
GET = b"GET /items/1 HTTP/1.1\r\nHost: a\r\n\r\n"
REFUSED = 'sidecar_connections_refused_total{limit="connections"}'
WAITED = 'sidecar_connections_refused_total{limit="open_files"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def crowd(sidecar: Served, stack: ExitStack, number: int = MANY) -> list[socket.socket]:
    """Connections that stay open, each with a request."""
    clients = [stack.enter_context(sidecar.connect("data")) for _ in range(number)]
    for client in clients:
        try:
            client.sendall(GET)
        except OSError:
            continue
    return clients


def is_served(client: socket.socket) -> bool:
    try:
        return client.recv(12).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


def test_the_soft_limit_is_raised_to_the_hard_one(folder: Path, stack: ExitStack) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Served(folder, preexec_fn=limited(FEW, hard)) as sidecar:
        sidecar.wait_until_ready()
        assert all(is_served(client) for client in crowd(sidecar, stack))
        assert sidecar.metrics()["process_max_fds"] == hard
        assert sidecar.stop(signal.SIGINT) == 0


def test_connections_beyond_the_open_file_limit_are_refused_and_counted(folder: Path, stack: ExitStack) -> None:
    with Served(folder, preexec_fn=limited(FEW, FEW), stderr=subprocess.PIPE, text=True) as sidecar:
        sidecar.wait_until_ready()
        served = [is_served(client) for client in crowd(sidecar, stack)]
        assert 20 < sum(served) < FEW
        assert sidecar.get("/livez").endswith(b"ok\n")
        assert sidecar.get("/readyz").endswith(b"ok\n")
        metrics = sidecar.metrics()
        assert metrics[REFUSED] == MANY - sum(served)
        assert metrics[WAITED] == 0
        assert metrics["process_open_fds"] < FEW - 16
        stack.close()
        until(lambda: is_served(crowd(sidecar, stack, 1)[0]))
        stack.close()
        assert sidecar.stop(signal.SIGINT) == 0
        assert sidecar.process.stderr is not None
        with sidecar.process.stderr as stderr:
            lines = stderr.read().splitlines()
    told = f"sidecar: limits.connections is {sum(served)} instead of 16384: the process may open only {FEW} files"
    assert [line for line in lines if "instead of" in line] == [f"{told} (ulimit -n)"]
    assert [line for line in lines if re.match(r"sidecar: \d+ connections refused \(limits.connections\) ", line)]


def test_without_any_descriptor_left_connections_wait_and_the_process_does_not_spin(
    folder: Path, stack: ExitStack
) -> None:
    with Served(folder, preexec_fn=limited(FEW, FEW)) as sidecar:
        sidecar.wait_until_ready()
        pid = sidecar.process.pid
        assert is_served(crowd(sidecar, stack, 1)[0])
        stack.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) - 1, FEW))
        used, [client] = cpu_seconds(pid), crowd(sidecar, stack, 1)
        select.select([], [], [], 1.5)  # Its CPU use during this time is measured.
        assert cpu_seconds(pid) - used < 0.5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, FEW))
        assert is_served(client)
        assert sidecar.metrics()[WAITED] > 0
        stack.close()
        assert sidecar.stop(signal.SIGINT) == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
