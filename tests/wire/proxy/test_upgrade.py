"""WebSocket and other upgrades: a byte tunnel after the gate's Allow and the upstream's 101."""

import asyncio
import socket

import pytest

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from tests.harness.waiting import eventually
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, Script, answering, plain
from tests.wire.proxy.conftest import HELD, MIB, MUCH, Bench, SetUp
from tests.wire.proxy.wire import RawClient, get, post

ASKING = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhl==", b"X-Odd_Name: 1")
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"connection: upgrade\r\nupgrade: websocket\r\nSec-WebSocket-Accept: s3p=\r\n\r\n"
)


def tunnelling(talk: Script, response: bytes = SWITCHED) -> Script:
    """Upgrades, then runs `talk`."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(response)
        await talk(peer)

    return script


async def echo(peer: Peer) -> None:
    while data := await peer.reader.read(65536):
        await peer.send(data)


async def silent(peer: Peer) -> None:
    await peer.reader.read()


async def open_tunnel(bench: Bench, *asking: bytes) -> tuple[RawClient, bytes]:
    """A client, and the head of its response."""
    client = await bench.client()
    await client.send(get("/chat", *(asking or ASKING)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        return client, await client.reader.readuntil(b"\r\n\r\n")


async def exactly(client: RawClient, size: int) -> bytes:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await client.reader.readexactly(size)


@pytest.mark.requirement("R1.6")
async def test_an_upgrade_is_forwarded_unchanged_and_bytes_flow_both_ways(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo), told=((b"X-Left", b"9"),))
    client, head = await open_tunnel(bench)
    asked = bench.upstream.seen[0]
    assert asked.startswith(b"GET /chat HTTP/1.1\r\n")
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in asked
    assert b"\r\nSec-WebSocket-Key: dGhl==\r\nX-Odd_Name: 1\r\n" in asked
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3p=\r\nX-Left: 9\r\n")
    assert head.endswith(b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    for data in (b"GET /admin HTTP/1.1\r\n\r\n", b"\x00\xff", b"\x81" * 5000):
        await client.send(data)
        assert await exactly(client, len(data)) == data
    await client.close()
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    record = bench.records.finished_ones[0]
    assert (record.status, record.bytes_in, record.bytes_out) == (101, 5025, 5025)
    assert bench.records.in_flight == 0


@pytest.mark.requirement("R1.6")
async def test_bytes_sent_with_the_heads_are_not_lost(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo, SWITCHED + b"hello "))
    client = await bench.client()
    await client.send(get("/chat", *ASKING) + b"early")
    await client.reader.readuntil(b"\r\n\r\n")
    assert await exactly(client, 11) == b"hello early"


@pytest.mark.requirement("R1.6")
async def test_a_megabyte_each_way_at_once(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo))
    client, _ = await open_tunnel(bench)
    sending = asyncio.get_running_loop().create_task(client.send(bytes(range(256)) * 4 * 8192))
    assert await exactly(client, 8 * MIB) == bytes(range(256)) * 4 * 8192
    await sending


@pytest.mark.requirement("R1.6")
async def test_a_slow_reader_slows_the_other_side(set_up: SetUp) -> None:
    go_on = asyncio.Event()
    sent = 0

    async def talk(peer: Peer) -> None:
        nonlocal sent
        for _ in range(MUCH):
            await peer.send(bytes(MIB))
            sent += 1
        await go_on.wait()
        await peer.exactly(MUCH * MIB)
        await peer.send(b"got it")

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # both loops' transports read, too
    sending = asyncio.get_running_loop().create_task(client.send(bytes(MUCH * MIB)))
    await asyncio.wait([sending], timeout=0.5)
    assert sent < HELD
    assert not sending.done()
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len(await exactly(client, MUCH * MIB)) == MUCH * MIB
    assert not sending.done()
    go_on.set()
    assert await exactly(client, 6) == b"got it"
    await sending


@pytest.mark.requirement("R1.6")
async def test_a_client_that_has_finished_still_receives(set_up: SetUp) -> None:
    async def talk(peer: Peer) -> None:
        said = await peer.reader.read()
        await peer.send(b"you said " + said)

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    await client.send(b"bye")
    client.writer.write_eof()
    assert await client.rest() == b"you said bye"
    await eventually(lambda: bench.records.finished_ones)


@pytest.mark.requirement("R1.6")
async def test_an_upstream_that_has_finished_still_receives(set_up: SetUp) -> None:
    said = bytearray()

    async def talk(peer: Peer) -> None:
        await peer.send(b"bye")
        peer.writer.write_eof()
        said.extend(await peer.reader.read())

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    assert await client.rest() == b"bye"
    await client.send(b"and you")
    client.writer.write_eof()
    await bench.upstream.peers[0].gone()
    assert said == b"and you"
    await eventually(lambda: bench.records.finished_ones)


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_tunnel_with_one_end_finished_and_nothing_moving_is_ended(set_up: SetUp, side: str) -> None:
    async def talk(peer: Peer) -> None:
        if side == "upstream":
            peer.writer.write_eof()
        await peer.until(b"never comes")
        await peer.ended.wait()

    bench = await set_up(tunnelling(talk), listener={"limits": Limits(idle_timeout=1)})
    client, _ = await open_tunnel(bench)
    if side == "client":
        client.writer.write_eof()
    await eventually(lambda: bench.records.finished_ones)


@pytest.mark.requirement("R1.6")
async def test_an_open_tunnel_may_be_idle(set_up: SetUp) -> None:
    limits = Limits(idle_timeout=0.8, head_timeout=0.8, answer_timeout=0.8)
    bench = await set_up(tunnelling(echo), answer_timeout=0.8, listener={"limits": limits})
    client, _ = await open_tunnel(bench)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 2)
    await client.send(b"still here")
    assert await exactly(client, 10) == b"still here"


@pytest.mark.requirement("R1.6")
async def test_a_tunnel_that_the_upstream_resets_is_reset(set_up: SetUp) -> None:
    async def talk(peer: Peer) -> None:
        await peer.exactly(2)
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.reset()

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    await client.send(b"hi")
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await eventually(lambda: bench.records.finished_ones)
    assert bench.records.finished_ones[0].reason is Reason.UPSTREAM_UNREACHABLE


@pytest.mark.requirement("R1.6")
async def test_without_a_key_the_upstream_is_not_contacted(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo))
    client = await bench.client()
    response = await client.ask(get("/denied", *ASKING))
    assert (response.status, response.all(b"Upgrade")) == (401, [])
    assert bench.upstream.peers == []


@pytest.mark.requirement("R1.6")
async def test_a_declined_upgrade_is_an_ordinary_response(set_up: SetUp) -> None:
    declined = plain(b"no", b"Connection: upgrade", b"Upgrade: websocket")
    bench = await set_up(answering(declined, plain(b"next")))
    client = await bench.client()
    response = await client.ask(get("/chat", *ASKING))
    assert (response.body, response.headers) == (b"no", [(b"Content-Length", b"2")])
    assert (await client.ask(get("/next"))).body == b"next"


@pytest.mark.requirement("R1.6")
async def test_other_protocols_are_tunnelled_too(set_up: SetUp) -> None:
    switched = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: spdy-like/7\r\n\r\n"
    bench = await set_up(tunnelling(echo, switched))
    client, head = await open_tunnel(bench, b"Connection: upgrade", b"Upgrade: spdy-like/7, other")
    assert b"\r\nUpgrade: spdy-like/7, other\r\n" in bench.upstream.seen[0]
    assert head.startswith(b"HTTP/1.1 101 ")
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await exactly(client, 18) == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.requirement("S2.3")
@pytest.mark.parametrize(
    "asking",
    [
        (b"Connection: Upgrade", b"Upgrade: h2c"),
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: H2C", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        (b"Connection: Upgrade", b"Upgrade: websocket, h2c"),
        (b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: TLS/1.2"),
        (b"Connection: Upgrade", b"Upgrade: HTTP/2.0"),
        (b"Connection: Upgrade", b"Upgrade: web socket"),
        (b"Connection: Upgrade", b"Upgrade: "),
        (b"Upgrade: websocket",),
        (b"Connection: Upgrade",),
    ],
)
async def test_protocols_that_carry_requests_are_not_tunnelled(set_up: SetUp, asking: tuple[bytes, ...]) -> None:
    bench = await set_up(answering(plain(b"no")))
    response = await bench.ask(get("/chat", *asking))
    assert response.status == 200
    assert b"\r\nupgrade:" not in bench.upstream.seen[0].lower()
    assert b"\r\nconnection:" not in bench.upstream.seen[0].lower()


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize(
    "asked",
    [get("/chat", *ASKING, version="1.0"), post(b"body", *ASKING)],
    ids=["HTTP/1.0", "with a body"],
)
async def test_only_http_1_1_without_a_body_can_switch(set_up: SetUp, asked: bytes) -> None:
    bench = await set_up(answering(plain(b"no")))
    assert (await bench.ask(asked)).status == 200
    assert b"upgrade" not in bench.upstream.seen[0].lower()


@pytest.mark.requirement("S3.5")
@pytest.mark.parametrize(
    "response",
    [
        SWITCHED.replace(b"upgrade: websocket", b"upgrade: other"),
        SWITCHED.replace(b"upgrade: websocket\r\n", b""),
        SWITCHED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"),
        SWITCHED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
async def test_a_101_to_what_was_not_offered_is_a_502(set_up: SetUp, response: bytes) -> None:
    bench = await set_up(tunnelling(silent, response))
    refusal = await bench.ask(get("/chat", *ASKING))
    assert (refusal.status, refusal.body) == (502, b"upstream_invalid")
    await bench.upstream.peers[0].gone()
    assert bench.records.finished_ones[0].reason is Reason.UPSTREAM_INVALID


@pytest.mark.requirement("R1.4")
async def test_an_upgrade_on_a_stale_connection_is_retried(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.request()
            await peer.send(plain())
            await peer.request()
            return
        await tunnelling(echo)(peer)

    bench = await set_up(script)
    await bench.ask(get("/warm"))
    _, head = await open_tunnel(bench)
    assert head.startswith(b"HTTP/1.1 101 ")
