"""A client that disconnects frees everything immediately."""

import asyncio

import pytest

from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get


@pytest.mark.requirement("R1.3")
@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_a_client_that_disconnects_ends_the_upstream_connection(set_up: SetUp, response: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        assert await peer.reader.read() == b""

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0])
    if response:
        await client.reader.readuntil(b"half")
    await client.close()
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    assert bench.records.finished_ones[0].status == (200 if response else 499)
    assert bench.records.in_flight == 0


@pytest.mark.requirement("R1.3")
async def test_a_client_that_disconnects_while_uploading_ends_the_upstream_connection(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.until(b"part")
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get("/x", b"Content-Length: 100", method="POST") + b"part")
    await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0].endswith(b"part"))
    await client.close()
    await bench.upstream.peers[0].gone()
    assert bench.records.in_flight == 0


async def test_a_client_that_disconnects_while_waiting_frees_its_place(set_up: SetUp) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(plain())

    bench = await set_up(script, max_connections=1)
    first, gone, last = [await bench.client() for _ in range(3)]
    for number, client in enumerate((first, gone, last)):
        await client.send(get(f"/{number}"))
        await eventually(lambda number=number: bench.records.in_flight == number + 1)
    await gone.close()
    await eventually(lambda: bench.records.in_flight == 2)
    release.set()
    assert (await first.receive()).status == 200
    assert (await last.receive()).status == 200
    assert b"/1" not in bench.upstream.seen[0].replace(b"/1.1", b"")
