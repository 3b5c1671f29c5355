"""Running exchanges end when their key is no longer valid."""

import asyncio
from contextlib import suppress

import pytest

from sidecar.core.errors import Reason
from sidecar.proxy.transport import LAST_CHUNK, framed
from tests.harness.waiting import eventually
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, Script
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.test_upgrade import SWITCHED, echo, open_tunnel, tunnelling
from tests.wire.proxy.wire import RawClient, get

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def events(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED + b"3\r\none\r\n")
    await peer.reader.read()


async def stream(bench: Bench, target: str = "/events") -> RawClient:
    client = await bench.client()
    await client.send(get(target))
    await client.reader.readuntil(b"one\r\n")
    return client


async def ended(client: RawClient) -> bool:
    with suppress(ConnectionResetError):
        return await asyncio.wait_for(client.reader.read(1), PATIENCE_SECONDS) == b""
    return True


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize("why", ["fallen_for", "narrowed_for"])
async def test_a_stream_in_the_middle_of_an_event_is_reset(set_up: SetUp, why: str) -> None:
    bench = await set_up(events)
    client = await stream(bench)
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert bench.records.in_flight == 1
    setattr(bench.gate, why, Reason.REVOKED_KEY)
    await bench.server.revalidate_streams(older_than_seconds=0)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    record = bench.records.finished_ones[0]
    assert (record.status, record.reason) == (200, Reason.REVOKED_KEY)


def streaming(response: bytes) -> Script:
    """That, and no end of it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        await peer.reader.read()

    return script


async def expect(client: RawClient, data: bytes) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await client.reader.readexactly(len(data)) == data


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: one\n\n"],
        [b"data: one\r\n\r\n"],
        [b"data: one\r\r"],
        [b"data: one\n", b"\n"],
        [b"data: one\r", b"\n", b"\r", b"\n"],
        [b"data: one\n\n", b": comment\r\n\n"],
        [],
    ],
    ids=repr,
)
async def test_an_event_stream_that_is_between_events_ends_in_order_and_its_client_may_ask_again(
    set_up: SetUp, pieces: list[bytes]
) -> None:
    came = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for piece in pieces:
            await came.acquire()
            await peer.send(framed(piece))
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/events"))
    await client.reader.readuntil(b"\r\n\r\n")
    for piece in pieces:
        came.release()
        await expect(client, framed(piece))
    bench.gate.narrowed_for = Reason.INSUFFICIENT_SCOPE
    await bench.server.revalidate_streams(older_than_seconds=0)
    await expect(client, LAST_CHUNK)
    await bench.upstream.peers[0].gone()
    record = bench.records.finished_ones[0]
    assert (record.status, record.reason) == (200, Reason.INSUFFICIENT_SCOPE)
    assert (await client.ask(get("/denied"))).status == 401


async def test_an_event_stream_that_ends_with_its_connection_ends_in_order_with_it(set_up: SetUp) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
    bench = await set_up(streaming(head + b"data: one\n\n"))
    client = await bench.client()
    await client.send(get("/events"))
    await client.reader.readuntil(b"one\n\n")
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert await client.rest() == b""


@pytest.mark.parametrize(
    "head",
    [
        CHUNKED.replace(b"text/event-stream", b"text/plain"),
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n",
    ],
)
async def test_a_stream_that_may_be_inside_an_event_is_reset(set_up: SetUp, head: bytes) -> None:
    body = b"data: one\n\n"
    bench = await set_up(streaming(head + (body if b"Length" in head else framed(body))))
    client = await bench.client()
    await client.send(get("/events"))
    await client.reader.readuntil(b"one\n\n")
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.requirement("R1.6")
async def test_a_tunnel_of_a_revoked_key_is_reset(set_up: SetUp) -> None:
    switched = SWITCHED.replace(b"websocket", b"mqtt")
    bench = await set_up(tunnelling(echo, switched))
    client, _ = await open_tunnel(bench, b"Connection: Upgrade", b"Upgrade: mqtt")
    bench.gate.fallen_for = Reason.EXPIRED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert await ended(client)
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    assert (bench.records.finished_ones[0].status, bench.records.finished_ones[0].reason) == (101, Reason.EXPIRED_KEY)


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """As sent by a server: not masked."""
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e%b" % size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    )
    return bytes([first]) + length + payload


CLOSED_BY_POLICY = b"\x88\x0e" + (1008).to_bytes(2) + b"access ended"
FRAMES = {
    "none": [],
    "empty": [frame(b"")],
    "small, in bytes": [bytes([byte]) for byte in frame(b"abc") + frame(b"")],
    "of 126 bytes": [frame(b"x" * 126)],
    "of 70,000 bytes": [frame(b"x" * 70_000) + frame(b"y")],
    "a ping within a message": [frame(b"half", 0x01), frame(b"", 0x89)],
}
BEGUN = {
    "a head": frame(b"x" * 126)[:3],
    "one byte": b"\x81",
    "a payload": frame(b"abc")[:4],
    "all after a close frame": frame(b"\x03\xe8", 0x88),
    "frames too many to follow": frame(b"") * 5000,
}


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize("name", FRAMES)
async def test_a_websocket_that_is_between_frames_is_closed_with_1008(set_up: SetUp, name: str) -> None:
    async def talk(peer: Peer) -> None:
        for piece in FRAMES[name]:
            await peer.send(piece)
            await peer.exactly(1)
        await peer.reader.read()

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    for piece in FRAMES[name]:
        await expect(client, piece)
        await client.send(b".")
    bench.gate.narrowed_for = Reason.WRONG_TENANT
    await bench.server.revalidate_streams(older_than_seconds=0)
    await bench.upstream.peers[0].gone()
    await client.send(b"what comes now goes nowhere")
    assert await client.rest() == CLOSED_BY_POLICY
    client.writer.close()
    await eventually(lambda: bench.records.finished_ones)
    assert (bench.records.finished_ones[0].status, bench.records.finished_ones[0].reason) == (101, Reason.WRONG_TENANT)


@pytest.mark.requirement("R1.6")
@pytest.mark.parametrize("name", BEGUN)
async def test_a_websocket_in_the_middle_of_a_frame_is_reset(set_up: SetUp, name: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.send(BEGUN[name])
        await peer.reader.read()

    bench = await set_up(tunnelling(talk))
    client, _ = await open_tunnel(bench)
    await expect(client, BEGUN[name])
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.requirement("R1.6")
async def test_a_client_that_ignores_a_close_frame_is_reset_at_the_next_check(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo))
    client, _ = await open_tunnel(bench)
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    await expect(client, CLOSED_BY_POLICY)
    assert bench.records.finished_ones == []
    await bench.server.revalidate_streams(older_than_seconds=0)
    await eventually(lambda: bench.records.finished_ones)
    assert bench.records.finished_ones[0].reason is Reason.REVOKED_KEY


@pytest.mark.requirement("R1.6")
async def test_public_and_young_exchanges_continue(set_up: SetUp) -> None:
    bench = await set_up(events)
    await stream(bench, "/public")
    await stream(bench, "/young")
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=60)
    assert bench.records.in_flight == 2
    await bench.server.revalidate_streams(older_than_seconds=0)
    await eventually(lambda: bench.records.in_flight == 1)


@pytest.mark.requirement("R1.6")
async def test_an_upload_of_a_revoked_key_is_aborted(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3\r\none\r\n")
    await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0])
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert await ended(client)
    await bench.upstream.peers[0].gone()
