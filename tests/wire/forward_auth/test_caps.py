"""The forward-auth listener enforces `limits` per client and in total, and follows changes to them."""

import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.running import StartSidecar
from tests.harness.wire import Connection, ConnectionClosed
from tests.wire.forward_auth.asking import FILES, Decider, question, start_decider
from tests.wire.reload.changing import Changing

STRANGER = "127.9.9.9"
TEXT = (FILES / "sidecar.yaml").read_text(encoding="utf-8")


def limited(start: StartSidecar, limits: str) -> Decider:
    return start_decider(start, f"{TEXT}\nlimits: {{{limits}}}\n")


def responses(decider: Decider, connection: Connection) -> bool:
    try:
        return connection.exchange(question("nginx", "GET", "/items/1", decider.credential("Kr"))).status == 200
    except (ConnectionClosed, ConnectionError):
        return False


@pytest.mark.parametrize(("limit", "served"), [("connections", 2), ("connections_per_address", 3)])
def test_connections_over_a_limit_are_closed_and_counted(start_sidecar: StartSidecar, limit: str, served: int) -> None:
    """The limit by address does not apply to trusted proxies."""
    decider = limited(start_sidecar, f"{limit}: 2")
    opened = [decider.connect() for _ in range(3)]
    assert [responses(decider, connection) for connection in opened].count(True) == served
    for connection in opened:
        connection.close()
    if limit == "connections":
        assert decider.sidecar.metric('sidecar_connections_refused_total{limit="connections"}') == 1


def test_unknown_clients_are_limited_by_address(start_sidecar: StartSidecar) -> None:
    decider = limited(start_sidecar, "connections_per_address: 2")
    opened = [Connection(decider.address, source=STRANGER) for _ in range(3)]
    assert opened[2].rest() == b""
    assert decider.sidecar.metric('sidecar_connections_refused_total{limit="connections_per_address"}') == 1
    opened[0].close()
    while decider.exchange(question("nginx", "GET", "/items/1"), source="127.9.9.8").status != 403:
        pass
    for connection in opened[1:]:
        connection.close()


def test_a_client_cannot_make_it_buffer_an_endless_head(start_sidecar: StartSidecar) -> None:
    """It is closed because of what it sent: nothing more arrives, and the timeout of a head is longer than the test."""
    decider = limited(start_sidecar, "head: 16KiB, header: 8KiB, head_timeout: 60s")
    with Connection(decider.address, source=STRANGER) as connection:
        with suppress(ConnectionError):
            connection.send(b"GET /nginx HTTP/1.1\r\n")
            for number in range(10):
                connection.send(b"A%d: %b\r\n" % (number, b"x" * 4000))
        assert connection.rest().partition(b"\r\n")[0] in (b"", b"HTTP/1.1 431 Request Header Fields Too Large")


def test_a_burst_of_connections_does_not_wait(start_sidecar: StartSidecar) -> None:
    """While the process is stopped, it cannot accept any of them."""
    decider = start_decider(start_sidecar)
    burst = min(600, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    decider.sidecar.process.signal(signal.SIGSTOP)
    try:
        for connection in [socket.create_connection(decider.address, timeout=30) for _ in range(burst)]:
            connection.close()
    finally:
        decider.sidecar.process.signal(signal.SIGCONT)


def test_limits_are_followed(start_sidecar: StartSidecar, tmp_path: Path) -> None:
    decider = limited(start_sidecar, "connections: 2")
    file = decider.sidecar.keys.config
    text = file.read_text(encoding="utf-8")
    changing = Changing(sidecar=decider.sidecar, file=file)
    changing.write(text.replace("connections: 2", "connections: 3"))
    changing.hang_up()
    changing.told(str(file))
    opened = [decider.connect() for _ in range(3)]
    assert all(responses(decider, connection) for connection in opened)
    for connection in opened:
        connection.close()
