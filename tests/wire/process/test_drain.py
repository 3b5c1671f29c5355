"""`sidecar drain` takes a running sidecar out of service, and back, by a socket that only its user can use."""

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from sidecar.runtime.control import _LONGEST
from tests.harness.keys import run_cli
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.waiting import until
from tests.harness.wire import Connection, Response

CONFIG = """\
listen: 127.0.0.1:0
decision: 127.0.0.1:0
upstream: http://127.0.0.1:1
store: sqlite:unused.db
trusted_proxies: [127.0.0.1]
drain: {delay: DELAY, timeout: 5s, socket: FOLDER/drain.sock}
routes:
- GET /hello: {public: true, respond: {hello: world}}
"""


def config_in(folder: Path, *, delay: str = "30s") -> Path:
    file = folder / "sidecar.yaml"
    file.write_text(CONFIG.replace("FOLDER", str(folder)).replace("DELAY", delay), encoding="utf-8")
    return file


def drain(folder: Path, *arguments: str) -> tuple[int, str]:
    done = run_cli("drain", "-c", str(folder / "sidecar.yaml"), *arguments)
    return done.exit_code, done.output


def ready(sidecar: Sidecar, path: str = "/readyz") -> Response:
    with Connection(sidecar.ops) as ops:
        return ops.ask("GET", path)


@pytest.fixture
def sidecar(start_sidecar: StartSidecar, tmp_path: Path) -> Sidecar:
    return start_sidecar(config_in(tmp_path))


def test_a_draining_sidecar_is_not_ready_closes_connections_and_still_serves(sidecar: Sidecar, tmp_path: Path) -> None:
    with sidecar.connect() as kept:
        assert kept.ask("GET", "/hello").all("Connection") == []
        status, told = drain(tmp_path)
        assert (status, told.split(":")[0]) == (0, "Draining")
        assert (ready(sidecar).status, ready(sidecar).body) == (503, b"drain: asked for by `sidecar drain`\n")
        assert ready(sidecar, "/livez").status == 200
        response = kept.ask("GET", "/hello")
        assert (response.status, response.header("Connection")) == (200, "close")
    assert sidecar.ask("GET", "/hello").status == 200, "new connections are taken"
    assert drain(tmp_path) == (0, "Draining already; `sidecar drain --undo` takes it back.\n")


def test_undone_it_is_ready_and_keeps_its_connections(sidecar: Sidecar, tmp_path: Path) -> None:
    assert drain(tmp_path, "--undo") == (0, "Not draining.\n")
    drain(tmp_path)
    assert drain(tmp_path, "--undo") == (0, "Ready again: connections are kept open.\n")
    assert ready(sidecar).status == 200
    with sidecar.connect() as kept:
        assert kept.ask("GET", "/hello").all("Connection") == []
        assert kept.ask("GET", "/hello").status == 200


def test_the_delay_counts_from_when_balancers_could_know(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    sidecar = start_sidecar(config_in(tmp_path, delay="200ms"))
    drain(tmp_path)
    line = sidecar.process.stderr.wait_for(lambda line: "draining (sidecar drain)" in line)
    assert line is not None
    until(lambda: sidecar.ask("GET", "/hello").status == 200)
    sidecar.process.signal(signal.SIGTERM)
    line = sidecar.process.stderr.wait_for(lambda line: "sidecar: draining: " in line)
    assert line is not None
    assert "new connections for 0.2 s" not in line
    assert sidecar.process.wait() == 0


def test_it_cannot_be_undone_once_the_process_ends(sidecar: Sidecar, tmp_path: Path) -> None:
    sidecar.process.signal(signal.SIGTERM)
    until(lambda: ready(sidecar).status == 503)
    assert drain(tmp_path) == (0, "Shutting down already.\n")
    status, told = drain(tmp_path, "--undo")
    assert (status, "cannot be undone" in told) == (1, True)


def test_only_the_user_of_the_sidecar_may_use_the_socket(sidecar: Sidecar, tmp_path: Path) -> None:
    found = (tmp_path / "drain.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())


def test_the_socket_is_removed_with_the_process(sidecar: Sidecar, tmp_path: Path) -> None:
    assert sidecar.stop() == 0
    assert not (tmp_path / "drain.sock").exists()
    status, told = drain(tmp_path)
    assert (status, told) == (1, f"Error: no sidecar listens on {tmp_path}/drain.sock\n")


def test_a_socket_that_a_killed_process_has_left_is_replaced(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "drain.sock"))
    left.close()
    sidecar = start_sidecar(config_in(tmp_path))
    assert drain(tmp_path)[0] == 0
    assert ready(sidecar).status == 503


def test_two_sidecars_do_not_share_a_socket(sidecar: Sidecar, start_sidecar: StartSidecar, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="another process does; give each sidecar its own"):
        start_sidecar(tmp_path / "sidecar.yaml", store=sidecar.keys.store)
    assert drain(tmp_path)[0] == 0, "the first still has it"


def test_a_file_that_is_not_a_socket_is_not_removed(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    (tmp_path / "drain.sock").write_text("mine")
    with pytest.raises(Exception, match="which is not a socket"):
        start_sidecar(config_in(tmp_path))
    assert (tmp_path / "drain.sock").read_text() == "mine"


@pytest.mark.parametrize("sent", [b"", b"drain", b"x" * _LONGEST * 100, b"\xff\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_an_unknown_action_changes_nothing(sidecar: Sidecar, tmp_path: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(tmp_path / "drain.sock"))
        client.sendall(sent)
        if sent != b"drain":
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1024) in (b"", b"refused unknown word\n")
    assert ready(sidecar).status == 200


def test_a_frozen_sidecar_is_reported_without_waiting_for_it(sidecar: Sidecar, tmp_path: Path) -> None:
    os.kill(sidecar.process.pid, signal.SIGSTOP)
    try:
        status, told = drain(tmp_path)
    finally:
        os.kill(sidecar.process.pid, signal.SIGCONT)
    assert (status, "does not answer within 5 s" in told) == (1, True)


def test_without_a_socket_the_command_says_which_option_is_missing(tmp_path: Path) -> None:
    file = config_in(tmp_path)
    file.write_text(file.read_text().replace(f", socket: {tmp_path}/drain.sock", ""))
    status, told = drain(tmp_path)
    assert (status, "`drain: {socket: FILE}`" in told) == (2, True)


def test_the_socket_can_be_named_where_the_configuration_is_broken(sidecar: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "sidecar.yaml").write_text("listen: [")
    assert drain(tmp_path)[0] == 2
    assert drain(tmp_path, "--socket", str(tmp_path / "drain.sock"))[0] == 0
