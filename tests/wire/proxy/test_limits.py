"""Limits on a client's resources: sizes and times."""

import asyncio
import time

import pytest

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from tests.harness.waiting import eventually
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, Script, answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get, post

UNREAD = 32 << 20
"""Bytes, several times what fits between a client and an upstream that reads nothing."""
SMALL = Limits(request_line=256, header=256, headers=10, head=1024)
FIVE_HEADERS = [b"X-%d: " % number + b"v" * 200 for number in range(5)]


def reader() -> tuple[list[bytes], Script]:
    """Reads everything, and never responds."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.head())
        while data := await peer.reader.read(65536):
            seen.append(data)

    return seen, script


@pytest.mark.requirement("S7.1")
@pytest.mark.parametrize(
    "raw",
    [
        get("/" + "a" * 300),
        get("/x", b"X: " + b"v" * 300),
        get("/x", *[b"X: y"] * 11),
        get("/x", *FIVE_HEADERS),
        get("/x?" + "a" * 200, *FIVE_HEADERS[:4]),
    ],
    ids=["request line", "one header", "number of headers", "all headers", "line and headers"],
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_head_over_its_limits_is_a_431(set_up: SetUp, raw: bytes, pieces: int) -> None:
    bench = await set_up(answering(plain()), listener={"limits": SMALL})
    client = await bench.client()
    size = -(-len(raw) // pieces)
    for start in range(0, len(raw), size):
        await client.send(raw[start : start + size])
        await asyncio.sleep(0)
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 431 ")
    assert response.endswith(b"\r\n\r\nheaders_too_large")
    assert bench.upstream.peers == []


@pytest.mark.requirement("S7.1")
async def test_a_head_within_its_limits_passes_however_it_is_split(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": SMALL})
    client = await bench.client()
    raw = get("/" + "a" * 240, *FIVE_HEADERS[:3])
    assert (await client.ask(raw)).status == 200
    assert (await client.ask(post(b"b" * 2000, *FIVE_HEADERS[:3]) + raw)).status == 200
    assert (await client.receive()).status == 200
    for byte in raw:
        await client.send(bytes([byte]))
    assert (await client.receive()).status == 200


@pytest.mark.requirement("S7.1")
async def test_a_large_head_behind_a_body_is_a_431_too(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": SMALL})
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 4", method="POST") + b"bo")
    await eventually(lambda: bench.records.in_flight)
    await client.send(b"dy" + get("/y", *FIVE_HEADERS))
    assert (await client.receive()).status == 200
    assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.requirement("S7.1")
async def test_a_head_without_end_is_not_kept(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": SMALL})
    client = await bench.client()
    await client.send(b"GET / HTTP/1.1\r\n")
    for field in FIVE_HEADERS:
        await client.send(field + b"\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.requirement("S7.1")
@pytest.mark.parametrize("expects", [b"X: y", b"Expect: 100-continue"])
async def test_a_declared_body_over_the_limit_is_a_413_before_the_upstream(set_up: SetUp, expects: bytes) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(body=1000)})
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 1001", expects, method="POST"))
    response = await client.receive()
    assert (response.status, response.body) == (413, b"body_too_large")
    assert bench.upstream.peers == []
    assert bench.records.finished_ones[0].reason is Reason.BODY_TOO_LARGE


@pytest.mark.requirement("S7.1")
async def test_a_body_at_the_cap_passes(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(body=1000)})
    assert (await bench.ask(post(b"b" * 1000))).status == 200
    chunked = get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3e8\r\n" + b"b" * 1000 + b"\r\n0\r\n\r\n"
    assert (await bench.ask(chunked)).status == 200


@pytest.mark.requirement("S7.1")
async def test_a_key_is_refused_before_a_large_body_is_sent(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(body=1000)})
    client = await bench.client()
    await client.send(get("/denied", b"Content-Length: 9999999", method="POST"))
    assert (await client.receive()).status == 401


@pytest.mark.requirement("S7.1")
async def test_a_chunked_body_that_is_there_and_too_large_never_reaches_the_upstream(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(body=1000)})
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3e9\r\n" + b"b" * 1001 + b"\r\n")
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 413 ")
    assert bench.upstream.peers == []


@pytest.mark.requirement("S7.1")
async def test_a_chunked_body_is_aborted_at_the_limit(set_up: SetUp) -> None:
    seen, script = reader()
    bench = await set_up(script, listener={"limits": Limits(body=1000)})
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3e8\r\n" + b"b" * 1000 + b"\r\n")
    await eventually(lambda: b"b" * 1000 in b"".join(seen))
    await client.send(b"1\r\nb\r\n")
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in response
    await bench.upstream.peers[0].gone()
    assert b"0\r\n\r\n" not in b"".join(seen)


@pytest.mark.requirement("S7.1")
async def test_a_chunked_body_over_the_limit_aborts_a_response_that_has_begun(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nearly")
        await peer.reader.read()

    bench = await set_up(script, listener={"limits": Limits(body=10)})
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n")
    await client.reader.readuntil(b"early")
    await client.send(b"6\r\nhello!\r\n")
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await eventually(lambda: bench.records.finished_ones)
    assert bench.records.finished_ones[0].reason is Reason.BODY_TOO_LARGE


@pytest.mark.requirement("S7.1")
async def test_a_head_that_does_not_end_in_time_is_a_408(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(head_timeout=1)})
    client = await bench.client()
    await client.ask(get())
    began = time.perf_counter()
    await client.send(b"GET / HTTP/1.1\r\nHost:")
    response = await client.rest()
    assert 0.99 <= time.perf_counter() - began < PATIENCE_SECONDS
    assert response.startswith(b"HTTP/1.1 408 ")
    assert response.endswith(b"\r\n\r\nrequest_timeout")
    assert bench.records.malformed_ones == [(408, Reason.REQUEST_TIMEOUT)]


@pytest.mark.requirement("S7.1")
async def test_slowly_dripping_bytes_do_not_extend_the_timeout(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(head_timeout=0.3)})
    client = await bench.client()
    await client.send(b"GET / HTTP/1.1\r\n")
    ended = asyncio.get_running_loop().create_task(client.rest())
    while not ended.done():
        client.writer.write(b"X: y\r\n")
        await asyncio.wait([ended], timeout=0.05)
    assert (await ended).startswith(b"HTTP/1.1 408 ")


@pytest.mark.requirement("S7.1")
async def test_a_silent_connection_is_closed_silently(set_up: SetUp) -> None:
    limits = Limits(head_timeout=0.5, idle_timeout=1)
    bench = await set_up(answering(plain()), listener={"limits": limits})
    silent, blank, kept = [await bench.client() for _ in range(3)]
    began = time.perf_counter()
    await blank.send(b"\r\n\r\n")
    await kept.ask(get())
    assert [await client.rest() for client in (silent, blank, kept)] == [b"", b"", b""]
    assert 0.99 <= time.perf_counter() - began < PATIENCE_SECONDS
    assert bench.records.malformed_ones == []


@pytest.mark.requirement("S7.1")
async def test_a_body_below_the_minimum_rate_is_a_408(set_up: SetUp) -> None:
    seen, script = reader()
    listener = {"limits": Limits(body_rate=1000), "body_window_seconds": 0.3}
    bench = await set_up(script, listener=listener)
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 100000", method="POST") + b"a" * 10)
    ended = asyncio.get_running_loop().create_task(client.rest())
    while not ended.done():
        client.writer.write(b"a" * 10)
        await asyncio.wait([ended], timeout=0.05)
    assert (await ended).startswith(b"HTTP/1.1 408 ")
    assert seen[0].startswith(b"POST ")
    await bench.upstream.peers[0].gone()
    assert bench.records.finished_ones[0].reason is Reason.REQUEST_TIMEOUT


@pytest.mark.requirement("S7.1")
async def test_a_body_above_the_minimum_rate_may_take_any_time(set_up: SetUp) -> None:
    listener = {"limits": Limits(body_rate=100), "body_window_seconds": 1.0}
    bench = await set_up(answering(plain()), listener=listener)
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 2000", method="POST"))
    response = asyncio.get_running_loop().create_task(client.receive())
    for _ in range(40):
        client.writer.write(b"a" * 50)
        await asyncio.wait([response], timeout=0.05)
    assert (await response).status == 200


@pytest.mark.requirement("S7.1")
async def test_an_upstream_that_does_not_read_is_not_the_clients_fault(set_up: SetUp) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # both loops' transports read, too
        await go_on.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.exactly(UNREAD)
        await peer.send(plain(b"all of it"))

    window = 1.5  # Longer than a loaded machine delays reads of the upstream and writes of the client.
    bench = await set_up(script, listener={"limits": Limits(body_rate=1000), "body_window_seconds": window})
    client = await bench.client()
    client.writer.write(get("/x", b"Content-Length: %d" % UNREAD, method="POST") + bytes(UNREAD))
    response = asyncio.get_running_loop().create_task(client.receive())
    await asyncio.wait([response], timeout=2 * window)
    assert not response.done()
    go_on.set()
    assert (await response).body == b"all of it"


@pytest.mark.requirement("S7.1")
async def test_a_client_that_reads_nothing_is_dropped_and_the_upstream_freed(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            await peer.send(bytes(1 << 20))

    bench = await set_up(script, listener={"limits": Limits(answer_timeout=0.3)})
    client = await bench.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(get())
    await eventually(lambda: bench.records.finished_ones)
    await bench.upstream.peers[0].gone()
    assert bench.records.in_flight == 0
