"""Bodies stream both ways: never buffered whole, never delayed."""

import asyncio
import hashlib
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, answering, plain
from tests.wire.proxy.conftest import HELD, MIB, MUCH, SetUp
from tests.wire.proxy.wire import get, post

SIZE = MUCH * MIB
PIECE = bytes(range(256)) * 256
MEMORY_BYTES = 16 * MIB
"""How much memory a transfer may add, including the test and the upstream in the same process."""


@cache
def whole_digest() -> bytes:
    """The digest of all pieces."""
    return hashlib.sha256(PIECE * (SIZE // len(PIECE))).digest()


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.requirement("R1.5")
async def test_a_large_answer_streams(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // len(PIECE)):
            await peer.send(PIECE)

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await client.reader.readuntil(b"\r\n\r\n")
    before = most = memory()
    digest, left = hashlib.sha256(), SIZE
    while left:
        data = await client.reader.read(65536)
        digest.update(data)
        left -= len(data)
        most = max(most, memory())
    assert digest.digest() == whole_digest()
    assert most - before < MEMORY_BYTES


@pytest.mark.requirement("R1.5")
async def test_a_client_that_reads_nothing_stops_the_upstream(set_up: SetUp) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(SIZE // len(PIECE)):
            await peer.send(b"10000\r\n" + PIECE + b"\r\n")
            sent += len(PIECE)
        await peer.send(b"0\r\n\r\n")
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # both loops' transports read, too
    before = memory()
    await client.send(get())
    await settled(lambda: sent)
    assert 0 < sent < HELD * MIB
    assert memory() - before < MEMORY_BYTES
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    response = await client.receive()
    assert len(response.body) == SIZE


async def test_a_connection_that_was_held_back_at_the_end_of_an_answer_carries_the_next(set_up: SetUp) -> None:
    bench = await set_up(
        answering(*[plain(PIECE * size) for size in range(1, 100, 2)]), answer_timeout=PATIENCE_SECONDS
    )
    client = await bench.client()
    for size in range(1, 100, 2):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(get())
        await settled(lambda: bench.records.in_flight + len(bench.records.finished_ones))
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await client.receive()).body) == len(PIECE) * size
    assert len(bench.upstream.peers) == 1


async def test_a_client_that_reads_nothing_does_not_get_endless_responses(set_up: SetUp) -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.request()
            requests += 1
            await peer.send(plain(PIECE))

    bench = await set_up(script)
    client = await bench.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    asked = 2 * SIZE // len(PIECE)
    client.writer.write(get() * asked)
    await settled(lambda: requests)
    assert 0 < requests * len(PIECE) < HELD * MIB
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(asked):
        assert (await client.receive()).body == PIECE


@pytest.mark.requirement("R1.5")
async def test_an_upstream_that_reads_nothing_stops_the_client(set_up: SetUp) -> None:
    go_on = asyncio.Event()
    received = hashlib.sha256()

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        left = SIZE
        while left:
            data = await peer.reader.read(65536)
            received.update(data)
            left -= len(data)
        await peer.send(plain(b"got it"))

    bench = await set_up(script)
    client = await bench.client()
    before = memory()
    sent = 0

    async def upload() -> None:
        nonlocal sent
        await client.send(get("/x", b"Content-Length: %d" % SIZE, method="PUT"))
        for _ in range(SIZE // len(PIECE)):
            await client.send(PIECE)
            sent += len(PIECE)

    uploading = asyncio.get_running_loop().create_task(upload())
    await settled(lambda: sent)
    assert sent < HELD * MIB
    assert memory() - before < MEMORY_BYTES
    go_on.set()
    await uploading
    assert (await client.receive()).body == b"got it"
    assert received.digest() == whole_digest()


@pytest.mark.requirement("R1.5")
async def test_a_large_chunked_upload_arrives_whole(set_up: SetUp) -> None:
    sizes: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        while size := int(await peer.reader.readuntil(b"\r\n"), 16):
            sizes.append(size)
            await peer.reader.readexactly(size + 2)
        await peer.send(plain(b"got it"))

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Transfer-Encoding: chunked", method="PUT"))
    for _ in range(100):
        await client.send(b"10000\r\n" + PIECE + b"\r\n")
    await client.send(b"0\r\n\r\n")
    assert (await client.receive()).body == b"got it"
    assert sum(sizes) == 100 * len(PIECE)


@pytest.mark.requirement("R1.5")
async def test_the_upstreams_bytes_pass_through_immediately(set_up: SetUp) -> None:
    turn = asyncio.Queue[None]()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await turn.get()
            await peer.send(b"1\r\nx\r\n")

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await client.reader.readuntil(b"\r\n\r\n")
    for _ in range(3):
        turn.put_nowait(None)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await client.reader.readexactly(6) == b"1\r\nx\r\n"


async def test_an_early_answer_to_an_unfinished_upload_is_passed_on_at_once(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 1000000", method="POST") + b"just the beginning")
    async with asyncio.timeout(PATIENCE_SECONDS):
        response = await client.receive()
    assert (response.status, response.body, response.all(b"Connection")) == (413, b"big", [b"close"])
    await bench.upstream.peers[0].gone()


async def test_a_response_can_stream_while_the_request_does(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for _ in range(3):
            await peer.send(await peer.exactly(2))

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 6", method="POST"))
    await client.reader.readuntil(b"\r\n\r\n")
    for piece in (b"ab", b"cd", b"ef"):
        await client.send(piece)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await client.reader.readexactly(2) == piece


async def test_a_short_unread_body_keeps_the_connection(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    assert (await client.ask(post(b"x" * 1000, target="/denied"))).status == 401
    await client.send(get("/denied", b"Content-Length: 4", method="POST"))
    assert (await client.receive()).status == 401
    await client.send(b"late" + get())
    assert (await client.receive()).status == 200


async def test_a_long_unread_body_closes_the_connection(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(get("/denied", b"Content-Length: 100000000", method="POST") + b"x" * 1000)
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in response
    assert bench.upstream.peers == []


async def settled(count: Callable[[], int]) -> None:
    """Let the loop turn until `count()` no longer grows."""
    last, unchanged = -1, 0
    async with asyncio.timeout(60):
        while unchanged < 2000:
            await asyncio.sleep(0)
            unchanged = unchanged + 1 if count() == last and last > 0 else 0
            last = count()
