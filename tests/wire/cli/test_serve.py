"""`sidecar serve`: what it says when it starts, and when it cannot."""

import errno
import os
import re
import signal
import socket
import subprocess
import time
from itertools import islice
from pathlib import Path

import pytest

from sidecar import __version__
from tests.harness import forks
from tests.harness.forks import ForkedProcess
from tests.harness.ports import free_port
from tests.harness.processes import ROOT, Process, clean_environ
from tests.harness.running import StartSidecar
from tests.harness.wire import exchange, request_bytes

CONFIG = """\
listen: 127.0.0.1:0
ops: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:keys.db
scopes: {read: Read}
routes:
- GET /items/**: {scopes: [read]}
realm: ${REALM:-api}
"""
SOON_SECONDS = 5.0
"""Fifty times the duration of a refusal, and less than anything that a start might wait for."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration and a store of one key."""
    (tmp_path / "sidecar.yaml").write_text(CONFIG, encoding="utf-8")
    assert run(tmp_path, "keys", "issue", "-c", "sidecar.yaml", "--name", "first")[0] == 0
    return tmp_path


def run(folder: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    """Exit status and the lines on stderr."""
    process = Process(ForkedProcess(words, clean_environ(**variables), folder=folder))
    return process.wait(), process.stderr.all()


def refused(folder: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    """The same of a serve that must end by itself, and soon."""
    began = time.monotonic()
    ended = run(folder, "serve", "-c", "sidecar.yaml", *words, **variables)
    assert time.monotonic() - began < SOON_SECONDS
    return ended


def test_a_ready_sidecar_says_where_each_listener_is(start_sidecar: StartSidecar) -> None:
    sidecar = start_sidecar(ROOT / "deploy" / "examples" / "hoko.yaml")
    assert sidecar.process.stderr.wait_for(lambda line: "route" in line)
    *listeners, summary = sidecar.process.stderr.all()
    assert [line.split(" on ")[0] for line in listeners] == ["sidecar: data listener", "sidecar: ops listener"]
    data, ops = (re.escape(line.removeprefix("sidecar: ")) for line in listeners)
    runs = rf"{re.escape(__version__)} with (?:0 active keys|1 active key), [0-9]+ routes, configuration [0-9a-f]{{12}}"
    told = f"sidecar: {runs}; {data}, {ops}"
    assert re.fullmatch(told, summary)
    assert sidecar.stop() == 0


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGTERM, "not ready from now on, new connections for 0 s, requests that have begun for up to 7 s"),
        (signal.SIGINT, "requests that have begun for up to 7 s"),
    ],
)
def test_a_terminating_sidecar_reports_that_it_drains(start_sidecar: StartSidecar, number: int, told: str) -> None:
    sidecar = start_sidecar(CONFIG + "drain: {delay: 0s, timeout: 7s}\n")
    assert sidecar.process.stop(number) == 0
    assert f"sidecar: draining: {told}" in sidecar.process.stderr.all()


def test_a_port_in_use_is_one_line_and_exit_1(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = refused(folder, "--listen", f"127.0.0.1:{port}")
    assert (status, len(lines)) == (1, 1)
    assert lines[0] == f"sidecar: cannot listen on 127.0.0.1:{port} (listen): {os.strerror(errno.EADDRINUSE)}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_upstream_whose_name_leads_back_is_one_line_and_exit_2(folder: Path, workers: str) -> None:
    at = f"127.1:{free_port()}"  # Resolvers read it as 127.0.0.1.
    listen = at.replace("127.1", "0.0.0.0")  # noqa: S104 - refused before anything is bound
    status, lines = refused(folder, "--listen", listen, "--workers", workers, "--upstream", f"http://{at}")
    assert (status, len(lines)) == (2, 1)
    assert f"upstream: {at} is the sidecar itself, at the address of listen: name the service's own" in lines[0]


def test_a_missing_store_is_refused_and_not_made(folder: Path) -> None:
    status, lines = refused(folder, "--store", f"sqlite://{folder}/other.db")
    assert (status, len(lines)) == (1, 1)
    assert "sidecar keys issue" in lines[0]
    assert not (folder / "other.db").exists()


def test_a_store_that_is_not_a_database_is_one_line_and_exit_1(folder: Path) -> None:
    (folder / "other.db").write_bytes(b"not a database at all" * 100)
    status, lines = refused(folder, "--store", f"sqlite://{folder}/other.db")
    assert (status, len(lines)) == (1, 1)


def test_a_missing_pepper_is_one_line_and_exit_1(folder: Path) -> None:
    pepper = "a pepper that is long enough"
    assert run(folder, "keys", "issue", "-c", "sidecar.yaml", "--name", "p", SIDECAR_PEPPER=pepper)[0] == 0
    status, lines = refused(folder)
    assert (status, len(lines)) == (1, 1)
    assert "SIDECAR_PEPPER" in lines[0]
    assert pepper not in lines[0]


def test_all_configuration_errors_are_reported_at_once_with_exit_2(folder: Path) -> None:
    (folder / "sidecar.yaml").write_text(CONFIG + "realms: x\naccess_log: jsn\n", encoding="utf-8")
    status, lines = refused(folder)
    assert status == 2
    assert [line.split(" ")[0] for line in lines] == ["sidecar.yaml:9:1:", "sidecar.yaml:10:13:"]


def test_options_override_variables_and_variables_override_the_file(folder: Path) -> None:
    assert refused(folder, SIDECAR_STORE="nonsense")[1][0].startswith("SIDECAR_STORE: ")
    assert refused(folder, "--store", "rubbish", SIDECAR_STORE="nonsense")[1][0].startswith("--store: ")


def started(folder: Path, environ: dict[str, str], *options: str) -> "subprocess.Popen[str]":
    command, passed = forks.command("serve", "-c", "sidecar.yaml", *options), [forks.server().fileno()]
    return subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True, pass_fds=passed)


def test_a_unix_socket_can_be_listened_on(folder: Path, start_sidecar: StartSidecar) -> None:
    path = folder / "data.sock"
    environ = {**clean_environ(), "PYTHONPATH": str(ROOT)}
    with started(folder, environ, "--listen", f"unix:{path}") as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"sidecar: data listener on unix:{path}\n"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(path))
                client.sendall(b"GET /items/1 HTTP/1.1\r\nHost: a\r\n\r\n")
                assert b'realm="api"' in client.recv(65536)
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_an_admin_listener_that_is_not_opened_is_said_at_the_start(folder: Path) -> None:
    environ = {**clean_environ(), "PYTHONPATH": str(ROOT)}
    with started(folder, environ, "--admin", "127.0.0.1:0") as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if " listener on " not in line)
            assert line.startswith("sidecar: admin: no listener is opened without an admin token: set SIDECAR_ADMIN_")
        finally:
            process.send_signal(signal.SIGINT)


def test_every_listener_serves_each_address_of_its_list_and_says_so(folder: Path) -> None:
    text = CONFIG.replace("listen: 127.0.0.1:0\nops: 127.0.0.1:0\n", 'listen: ["[::]:0", "unix:data.sock"]\n')
    text = text.replace("unix:data.sock", f"unix:{folder}/data.sock")
    text += 'ops: ["[::]:0", "127.0.0.1:0"]\nadmin: {listen: ["[::]:0"]}\ndecision: "[::]:0"\n'
    (folder / "sidecar.yaml").write_text(text + "trusted_proxies: [127.0.0.1]\n", encoding="utf-8")
    environ = {**clean_environ(), "PYTHONPATH": str(ROOT), "SIDECAR_ADMIN_TOKEN": "0123456789abcdef0123"}
    with started(folder, environ) as process:
        try:
            assert process.stderr is not None
            told = (line.removeprefix("sidecar: ").strip().partition(" listener on ") for line in process.stderr)
            found = list(islice(((name, where) for name, _, where in told if where), 6))
            assert [name for name, _ in found] == ["data", "data", "decision", "admin", "ops", "ops"]
            assert found[1][1] == f"unix:{folder}/data.sock"
            ports = {name: int(where.rpartition(":")[2]) for name, where in found if where.startswith("[::]:")}
            assert {name: statuses(port) for name, port in ports.items()} == {
                "data": [401, 401],
                "decision": [400, 403],  # Only the proxy in trusted_proxies may use it.
                "admin": [401, 401],
                "ops": [404, 404],
            }
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def statuses(port: int) -> list[int]:
    """Over IPv4 and over IPv6."""
    request = request_bytes("GET", "/items/1", [], b"", host="localhost")
    return [exchange((host, port), request).status for host in ("127.0.0.1", "::1")]
