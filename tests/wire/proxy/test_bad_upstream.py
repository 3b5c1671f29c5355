"""An upstream that is slow, dead, or responds with garbage."""

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from sidecar.core.errors import Reason, UpstreamCause
from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, answering, closing_after, plain
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.wire import get, post


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.reader.read()


async def resetting(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def quickest(bench: Bench, status: int) -> float:
    """The least seconds of several consecutive responses with `status`: a busy machine delays some, not all."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert (await bench.ask(get())).status == status
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.requirement("R1.1")
async def test_a_refused_connection_is_a_502_within_a_second(set_up: SetUp) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        bench = await set_up(silent, address=Address(host="127.0.0.1", port=closed.getsockname()[1]))
        response = await bench.ask(get())
        assert (response.status, response.body) == (502, b"upstream_unreachable")
        assert await quickest(bench, 502) < 1
    record = bench.records.finished_ones[0]
    assert (record.reason, record.cause) == (Reason.UPSTREAM_UNREACHABLE, UpstreamCause.REFUSED)


async def test_an_unknown_name_is_a_502(set_up: SetUp) -> None:
    bench = await set_up(silent, address=Address(host="no-such-host.invalid", port=80), connect_timeout=2.0)
    status = (await bench.ask(get())).status
    causes = {
        502: UpstreamCause.DNS,
        504: UpstreamCause.CONNECT,
    }  # Without a name server, nothing says that the name does not exist.
    assert bench.records.finished_ones[0].cause is causes[status]


async def test_an_upstream_that_stops_reading_is_distinguished_from_one_that_does_not_respond(set_up: SetUp) -> None:
    async def deaf(peer: Peer) -> None:
        await peer.head()
        await peer.ended.wait()

    bench = await set_up(deaf, answer_timeout=0.2)
    client = await bench.client()
    with suppress(ConnectionError):
        await client.send(get("/x", b"Content-Length: 1000000000", method="POST"))
        while not bench.records.finished_ones:
            client.writer.write(b"x" * 65536)
            await asyncio.sleep(0)
    assert bench.records.finished_ones[0].cause is UpstreamCause.REQUEST_BODY


@pytest.mark.requirement("R1.1")
async def test_a_reset_before_the_answer_is_a_502_within_a_second(set_up: SetUp) -> None:
    bench = await set_up(resetting)
    assert await quickest(bench, 502) < 1
    assert {record.cause for record in bench.records.finished_ones} <= {UpstreamCause.RESET, UpstreamCause.CLOSED}


@pytest.mark.requirement("R1.1")
async def test_a_reused_connection_that_closes_on_a_post_is_distinguished_from_a_new_one(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain())
        await peer.head()

    bench = await set_up(script)
    client = await bench.client()
    assert [(await client.ask(post(b"x"))).status for _ in range(2)] == [200, 502]
    assert bench.records.finished_ones[1].cause is UpstreamCause.IDLE_CLOSED


@pytest.mark.requirement("R1.1")
async def test_a_unix_socket_that_is_not_there_is_a_502(set_up: SetUp, tmp_path: Path) -> None:
    bench = await set_up(silent, address=Address(path=str(tmp_path / "nowhere.sock")))
    assert (await bench.ask(get())).status == 502
    assert bench.records.finished_ones[0].cause is UpstreamCause.NO_SOCKET


NONSENSE = {
    UpstreamCause.HEAD_CUT: (b"HTTP/1.1 200 OK\r\nContent-Le",),
    UpstreamCause.NOT_HTTP: (
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00",
    ),
    UpstreamCause.HTTP_VERSION: (
        b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.9 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ),
    UpstreamCause.BAD_STATUS: (
        b"HTTP/1.1 2xx OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
    ),
    UpstreamCause.TWO_LENGTHS: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    UpstreamCause.BAD_LENGTH: (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi",),
    UpstreamCause.TRANSFER_CODING: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    UpstreamCause.BAD_HEADER: (
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nhi",
    ),
    UpstreamCause.BAD_CHUNK: (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
    UpstreamCause.UNEXPECTED_UPGRADE: (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ),
    UpstreamCause.HEAD_TOO_LARGE: (
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 10_000 + b"\r\n",
    ),
}
"""Invalid responses, by the cause that the operator gets."""


@pytest.mark.requirement("S3.5")
@pytest.mark.parametrize(
    ("nonsense", "cause"), [(nonsense, cause) for cause, some in NONSENSE.items() for nonsense in some]
)
async def test_nonsense_is_a_502_and_that_connection_is_closed(
    set_up: SetUp, nonsense: bytes, cause: UpstreamCause
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(nonsense if peer.number == 1 else plain(b"good"))
        if peer.number == 1 and nonsense.endswith(b"Content-Le"):
            return
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    response = await client.ask(get())
    assert (response.status, response.body) == (502, b"upstream_invalid")
    assert bench.records.finished_ones[0].cause is cause
    await bench.upstream.peers[0].gone()
    assert (await client.ask(get())).body == b"good"


@pytest.mark.requirement("S3.5")
@pytest.mark.parametrize(
    "excess_data", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x", b"\r\n\r\nx", b"\x00"]
)
async def test_bytes_after_a_response_reach_no_client(set_up: SetUp, excess_data: bytes) -> None:
    async def script(peer: Peer) -> None:
        target = (await peer.request()).split(b" ")[1]
        await peer.send(plain(target) + excess_data)
        await peer.reader.read()

    bench = await set_up(script)
    clients = [await bench.client(), await bench.client()]
    for number in range(50):
        response = await clients[number % 2].ask(get(f"/{number}"))
        assert (response.status, response.body) == (200, b"/%d" % number)
    assert len(bench.upstream.peers) == 50


async def test_bytes_on_an_idle_connection_end_it(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"first" if peer.number == 1 else b"second"))
        await peer.send(plain(b"evil"))
        await peer.reader.read()

    bench = await set_up(script)
    assert (await bench.ask(get())).body == b"first"
    await bench.upstream.peers[0].gone()
    assert (await bench.ask(get())).body == b"second"


@pytest.mark.requirement("R1.1")
async def test_a_missing_response_is_a_504_at_the_timeout(set_up: SetUp) -> None:
    bench = await set_up(silent, answer_timeout=0.2)
    response = await bench.ask(get())
    assert (response.status, response.body) == (504, b"upstream_timeout")
    assert bench.records.finished_ones[0].cause is UpstreamCause.RESPONSE_HEAD
    assert 0.19 <= await quickest(bench, 504) < 0.6
    await bench.upstream.peers[0].gone()


async def test_the_response_timeout_restarts_with_each_request(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), answer_timeout=1.5)
    client = await bench.client()
    began = time.perf_counter()
    while time.perf_counter() - began < 2:
        assert (await client.ask(get())).status == 200
    assert len(bench.upstream.peers) == 1


@pytest.mark.requirement("R1.1")
async def test_a_connection_attempt_that_times_out_is_a_504(set_up: SetUp) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address(host="127.0.0.1", port=full.getsockname()[1])
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        bench = await set_up(silent, address=address, connect_timeout=0.2)
        response = await bench.ask(get())
        assert (response.status, response.body) == (504, b"upstream_timeout")
        assert bench.records.finished_ones[0].cause is UpstreamCause.CONNECT
        assert 0.19 <= await quickest(bench, 504) < 0.6
        for filler in fillers:
            filler.close()


@pytest.mark.requirement("R1.2")
@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
    ],
)
async def test_a_response_cut_off_midway_is_visibly_broken_and_counted(set_up: SetUp, half: bytes) -> None:
    bench = await set_up(closing_after(half))
    client = await bench.client()
    await client.send(get())
    received = b""
    with pytest.raises(ConnectionResetError):
        while data := await client.reader.read(65536):
            received += data
    assert received.endswith((b"only this", b"only this\r\n"))
    await eventually(lambda: bench.records.finished_ones)
    record = bench.records.finished_ones[0]
    assert (record.status, record.reason) == (200, Reason.UPSTREAM_UNREACHABLE)
    assert record.cause is UpstreamCause.BODY_CUT


@pytest.mark.requirement("R1.2")
async def test_a_reset_does_not_complete_a_response_delimited_by_close(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        await peer.until(b"never comes")

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await client.reader.readuntil(b"half")
    sock = bench.upstream.peers[0].writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    bench.upstream.peers[0].reset()
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_requests_beyond_the_last_connection_wait_in_order_with_a_timeout(set_up: SetUp) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            target = (await peer.request()).split(b" ")[1]
            if target == b"/slow":
                await release.wait()
            await peer.send(plain(target))

    bench = await set_up(script, max_connections=1, queue_timeout=1.0)
    slow = await bench.client()
    await slow.send(get("/slow"))
    await eventually(lambda: bench.upstream.seen and bench.upstream.seen[0])
    response = await bench.ask(get("/late"))
    assert (response.status, response.body) == (503, b"upstream_busy")
    waiting = [await bench.client(), await bench.client()]
    for number, client in enumerate(waiting):
        await client.send(get(f"/{number}"))
        await eventually(lambda number=number: bench.records.in_flight == 2 + number)
    release.set()
    assert [(await client.receive()).body for client in (slow, *waiting)] == [b"/slow", b"/0", b"/1"]
    assert bench.upstream.seen[0].index(b"GET /0") < bench.upstream.seen[0].index(b"GET /1")
    assert len(bench.upstream.peers) == 1


async def test_a_post_that_is_not_answered_is_a_502(set_up: SetUp) -> None:
    bench = await set_up(resetting)
    assert (await bench.ask(post(b"x"))).status == 502
    assert len(bench.upstream.peers) == 1


async def test_the_observer_learns_status_and_sizes_of_each_request(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"12345")))
    await bench.ask(post(b"abc"))
    await bench.ask(get("/denied"))
    await bench.ask(get("/me"))
    forwarded, denied, own = bench.records.finished_ones
    assert (forwarded.status, forwarded.bytes_in, forwarded.bytes_out, forwarded.reason) == (200, 3, 5, None)
    assert forwarded.upstream_seconds is not None and 0 < forwarded.upstream_seconds <= forwarded.seconds
    assert (denied.status, denied.reason, denied.upstream_seconds) == (401, Reason.MISSING_CREDENTIAL, None)
    assert (own.status, own.bytes_out) == (200, 11)
    assert bench.records.in_flight == 0


@pytest.mark.requirement("S3.5")
@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
    ],
)
async def test_a_forbidden_body_in_a_separate_packet_reaches_no_client(set_up: SetUp, method: str, head: bytes) -> None:
    answered = asyncio.Event()

    async def careless(peer: Peer) -> None:
        await peer.request()
        if peer.number > 1:
            await peer.send(plain(b"its own"))
            return
        await peer.send(head)
        await answered.wait()
        await peer.send(plain(b"of another"))
        await peer.request()

    bench = await set_up(careless)
    client = await bench.client()
    await client.send(get(method=method) + get("/next"))
    await client.receive(method.encode())
    answered.set()
    assert (await client.receive()).body == b"its own"
