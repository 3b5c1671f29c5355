"""The same attacks on the ops, the admin and the forward auth listener of one sidecar."""

import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.harness.framing import AMBIGUOUS, name_of
from tests.harness.headers import BROKEN_LINES
from tests.harness.running import Sidecar, StartSidecar
from tests.harness.wire import Address, Connection, ConnectionClosed
from tests.wire.admin.calls import CONFIG, admin_address
from tests.wire.forward_auth.asking import question

LISTENERS = ("ops", "admin", "forward auth")
HEAD_SECONDS, STUCK_SECONDS = 10, 20
BUSY_SECONDS = 60
"""What a busy machine may add."""
MOST_OF_ONE_ADDRESS = 128
STRANGER = "127.9.9.9"
TEXT = f"""{CONFIG}
decision: 127.0.0.1:0
trusted_proxies: [127.0.0.1]
limits:
  connections_per_address: {MOST_OF_ONE_ADDRESS}
  head_timeout: {HEAD_SECONDS}s
  answer_timeout: {STUCK_SECONDS}s
"""
MOST_HEAD_BYTES = {"ops": 65536, "admin": 65536, "forward auth": 32768 + 2 * 8192}
WANTED = {
    "ops": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "admin": b"GET /static/page.css HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "forward auth": question("nginx", "GET", "/streams/1"),
}
"""Requests whose response is larger than they are."""
STATUS = {"ops": 200, "admin": 200, "forward auth": 401}
GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03canary",
    "zeros": bytes(100),
    "no version": b"GET /canary\r\n\r\n",
    "another protocol": b"canary /canary canary\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare LF": b"GET /canary HTTP/1.1\nHost: localhost\n\n",
    **{repr(lines): b"GET / HTTP/1.1\r\nHost: canary\r\n" + lines + b"\r\n" for lines in BROKEN_LINES},
    **{
        name_of(fields): b"\r\n".join([b"POST /canary HTTP/1.1", b"Host: localhost", *fields, b"", b"0"])
        for fields in AMBIGUOUS
    },
}
Attack = Callable[[str, Address], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One listener of the sidecar."""

    name: str
    address: Address
    sidecar: Sidecar

    @property
    def request(self) -> bytes:
        return WANTED[self.name]

    def serves(self, *, source: str = "") -> bool:
        with Connection(self.address, source=source) as connection:
            return connection.exchange(self.request).status in (STATUS[self.name], 403)


@pytest.fixture(scope="module")
def sidecar(start_shared_sidecar: StartSidecar) -> Sidecar:
    return start_shared_sidecar(TEXT)


@pytest.fixture(scope="module")
def addresses(sidecar: Sidecar) -> Mapping[str, Address]:
    line = sidecar.process.stderr.wait_for(lambda line: "decision listener on" in line)
    assert line is not None, sidecar.process.stderr.all()
    host, _, port = line.rpartition(" ")[2].rpartition(":")
    return {"ops": sidecar.ops, "admin": admin_address(sidecar), "forward auth": (host, int(port))}


@pytest.fixture(params=LISTENERS)
def target(request: pytest.FixtureRequest, sidecar: Sidecar, addresses: Mapping[str, Address]) -> Target:
    return Target(name=request.param, address=addresses[request.param], sidecar=sidecar)


# Slow attacks, which run on all listeners at once and before anything else.


def silence(_: str, address: Address) -> bytes:
    with Connection(address) as connection:
        return patiently(connection)


def half_a_head(name: str, address: Address) -> bytes:
    with Connection(address) as connection:
        connection.send(WANTED[name][:-4])
        return patiently(connection)


def byte_by_byte(name: str, address: Address) -> bytes:
    """A second request, after one that was served."""
    with Connection(address) as connection:
        assert connection.exchange(WANTED[name]).status == STATUS[name]
        connection.send(b"GET /")
        connection.lose_patience(0.2)
        until = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < until:
            with suppress(ConnectionError):
                connection.send(b"x")
            with suppress(TimeoutError):
                return connection.rest()
        raise TimeoutError


def empty_lines(_: str, address: Address) -> bytes:
    """They are allowed before a request, but are not a request."""
    with Connection(address) as connection:
        connection.lose_patience(0.2)
        until = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < until:
            with suppress(ConnectionError):
                connection.send(b"\r\n")
            with suppress(TimeoutError):
                return connection.rest()
        raise TimeoutError


def patiently(connection: Connection) -> bytes:
    connection.lose_patience(BUSY_SECONDS)
    return connection.rest()


def no_reading(name: str, address: Address) -> bytes:
    """Sends requests until the server accepts no more, reads nothing, and waits until it is cut off."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        client.connect(address)
        with suppress(TimeoutError):
            while True:
                client.sendall(WANTED[name] * 1000)
        poll = select.poll()
        poll.register(client, select.POLLHUP)
        return b"cut off" if poll.poll((STUCK_SECONDS + BUSY_SECONDS) * 1000) else b"still open"


SLOW: Mapping[str, Attack] = {
    attack.__name__: attack for attack in (silence, half_a_head, byte_by_byte, empty_lines, no_reading)
}


@pytest.fixture(scope="module")
def slow_attacks(addresses: Mapping[str, Address]) -> Iterator[Mapping[tuple[str, str], Future[bytes]]]:
    with ThreadPoolExecutor(len(SLOW) * len(LISTENERS)) as threads:
        yield {
            (name, kind): threads.submit(attack, name, addresses[name])
            for kind, attack in SLOW.items()
            for name in LISTENERS
        }


@pytest.mark.parametrize("kind", [kind for kind in SLOW if kind != "no_reading"])
def test_a_head_that_does_not_arrive_in_time_is_a_408(
    slow_attacks: Mapping[tuple[str, str], Future[bytes]], target: Target, kind: str
) -> None:
    said = slow_attacks[target.name, kind].result()
    assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), said
    assert b"no-store" in said and b"Server:" not in said and said.count(b"HTTP/1.1") == 1


def test_a_client_that_reads_nothing_is_cut_off(
    slow_attacks: Mapping[tuple[str, str], Future[bytes]], target: Target
) -> None:
    assert slow_attacks[target.name, "no_reading"].result() == b"cut off"
    assert target.serves()


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_immediately_and_neither_echoed_nor_logged(target: Target, kind: str) -> None:
    with Connection(target.address) as connection:
        # Later bytes on the connection are not served.
        connection.send(GARBAGE[kind] + target.request)
        response = connection.receive()
        assert response.status == 400, response
        assert (response.header("Cache-Control"), response.header("Connection")) == ("no-store", "close")
        assert not response.all("Server") and not response.all("Date")
        assert b"canary" not in response.body and "canary" not in str(response.headers)
        assert connection.rest() == b""
    assert target.serves()
    assert not [line for line in target.sidecar.process.stderr.all() if "canary" in line or "Traceback" in line]


@pytest.mark.parametrize("kind", ["request line", "header", "headers", "head"])
def test_an_oversized_head_is_431(target: Target, kind: str) -> None:
    most = MOST_HEAD_BYTES[target.name]
    lines = {
        "request line": b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 20_000),
        "header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"a" * 9000),
        "headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (b"X: a\r\n" * 200),
        # Not a byte more than is read, and no end.
        "head": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: %b\r\n" % (b"a" * 997) * 100)[: most + 1],
    }
    with Connection(target.address) as connection:
        response = connection.exchange(lines[kind])
        assert (response.status, response.header("Connection")) == (431, "close")
        assert not response.all("Server")
        assert connection.rest() == b""


def test_a_method_that_is_unknown_is_refused(target: Target) -> None:
    with Connection(target.address) as connection:
        response = connection.exchange(b"CANARY /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + target.request)
        assert response.status == (405 if target.name == "forward auth" else 400)
        assert b"CANARY" not in response.body and response.header("Cache-Control") == "no-store"
        assert not response.all("Server")
        assert connection.rest() == b""


def test_no_request_follows_an_upgrade(target: Target) -> None:
    upgrade = target.request.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    with Connection(target.address) as connection:
        response = connection.exchange(upgrade + target.request)
        assert (response.status, response.header("Connection")) == (STATUS[target.name], "close")
        assert connection.rest() == b""


def test_a_client_that_ends_its_side_after_its_requests_gets_whole_responses_and_the_end(target: Target) -> None:
    whole = target.request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for sent in (target.request, target.request * 3, whole):
        with Connection(target.address) as connection:
            connection.send(sent)
            connection.end()
            for _ in range(sent.count(b" HTTP/1.1\r\n")):
                assert connection.receive().status == STATUS[target.name]
            assert connection.rest() == b""


def test_half_a_request_and_its_end_leave_nothing_behind(target: Target) -> None:
    for half in (target.request[:-4], b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"):
        # Each frees its place for the next one.
        for _ in range(MOST_OF_ONE_ADDRESS + 20):
            with socket.create_connection(target.address, source_address=(STRANGER, 0)) as client:
                client.sendall(half)
                client.shutdown(socket.SHUT_WR)
                client.settimeout(BUSY_SECONDS)
                with suppress(ConnectionResetError):
                    while client.recv(65536):
                        pass
    assert target.serves(source=STRANGER)
    assert not [line for line in target.sidecar.process.stderr.all() if "Traceback" in line]


def test_a_client_that_has_its_response_and_leaves_its_chunks_unfinished_is_not_waited_for(target: Target) -> None:
    unfinished = target.request.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    with Connection(target.address) as connection:
        assert connection.exchange(unfinished).status == STATUS[target.name]
        connection.end()
        connection.lose_patience(HEAD_SECONDS / 2)
        assert connection.rest() == b""


def test_too_many_connections_of_one_address_are_closed_and_others_are_served(target: Target) -> None:
    held = [Connection(target.address, source=STRANGER) for _ in range(MOST_OF_ONE_ADDRESS + 12)]
    for connection in held[-12:]:
        assert connection.rest() == b""
    assert target.serves()
    for connection in held:
        connection.close()
    until = time.monotonic() + BUSY_SECONDS
    while not freed(target):
        assert time.monotonic() < until


def freed(target: Target) -> bool:
    try:
        return target.serves(source=STRANGER)
    except (ConnectionClosed, ConnectionError):
        return False


def test_a_flood_of_pipelined_requests_is_served_one_after_the_other(target: Target) -> None:
    number = 500
    with Connection(target.address) as connection, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(connection.send, target.request * number)
        assert {connection.receive().status for _ in range(number)} == {STATUS[target.name]}
        sending.result()


def test_what_forward_auth_refuses_is_counted(sidecar: Sidecar, addresses: Mapping[str, Address]) -> None:
    sample = 'sidecar_denied_total{reason="bad_request",route="(none)"}'
    before = sidecar.metric(sample)
    with Connection(addresses["forward auth"]) as connection:
        assert connection.exchange(GARBAGE["no version"]).json()["code"] == "bad_request"
    assert sidecar.metric(sample) == before + 1
