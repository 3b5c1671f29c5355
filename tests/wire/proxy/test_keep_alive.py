"""Connections to the upstream are kept, and nothing is lost when they end."""

import asyncio

import pytest

from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get, post


async def test_connections_are_kept_and_the_last_one_used_is_the_next(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    clients = [await bench.client() for _ in range(5)]
    for client in clients:
        await client.send(get())
    for client in clients:
        await client.receive()
    opened = len(bench.upstream.peers)
    busiest = [len(seen) for seen in bench.upstream.seen]
    for _ in range(20):
        await bench.ask(get())
    assert len(bench.upstream.peers) == opened
    assert sum(len(seen) > before for seen, before in zip(bench.upstream.seen, busiest, strict=True)) == 1


async def test_idle_connections_are_closed(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), idle_timeout=0.1)
    await bench.ask(get())
    await bench.upstream.peers[0].gone()
    assert (await bench.ask(get())).status == 200
    assert len(bench.upstream.peers) == 2


@pytest.mark.requirement("R1.4")
@pytest.mark.parametrize("announced", [True, False])
async def test_no_get_fails_over_an_upstream_that_closes_after_some_requests(set_up: SetUp, announced: bool) -> None:
    async def script(peer: Peer) -> None:
        for number in range(8):
            await peer.request()
            await peer.send(plain(b"ok", b"Connection: close" if announced and number == 7 else b"X: y"))

    bench = await set_up(script)
    client = await bench.client()
    for _ in range(1600):
        assert (await client.ask(get())).status == 200


@pytest.mark.requirement("R1.4")
async def test_a_get_that_a_stale_connection_swallowed_is_sent_again(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain())
        if peer.number == 1:
            await peer.request()
            return
        await peer.reader.read()

    bench = await set_up(script)
    await bench.ask(get("/warm"))
    assert (await bench.ask(get("/again"))).status == 200
    assert [b"/again" in seen for seen in bench.upstream.seen] == [True, True]


@pytest.mark.requirement("R1.4")
async def test_a_post_is_never_sent_twice(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain())
        await peer.request()

    bench = await set_up(script)
    await bench.ask(get("/warm"))
    assert (await bench.ask(post(b"body"))).status == 502
    assert (await bench.ask(get("/warm"))).status == 200
    assert (await bench.ask(get("/x", method="POST"))).status == 502
    assert b"".join(bench.upstream.seen).count(b"POST") == 2


@pytest.mark.requirement("R1.4")
async def test_nothing_is_sent_again_once_a_response_has_begun(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain())
        await peer.request()
        await peer.send(b"HT")

    bench = await set_up(script)
    await bench.ask(get("/warm"))
    assert (await bench.ask(get("/once"))).status == 502
    assert b"".join(bench.upstream.seen).count(b"/once") == 1


async def test_a_client_on_a_kept_connection_is_let_go_when_the_server_stops(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.ask(get())
    await bench.server.stop(grace_seconds=5)
    assert await client.rest() == b""


async def test_requests_in_progress_finish_when_the_server_stops(set_up: SetUp) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await release.wait()
        await peer.send(plain(b"finished"))

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0])
    stopping = asyncio.get_running_loop().create_task(bench.server.stop(grace_seconds=5))
    await asyncio.sleep(0)
    release.set()
    response = await client.receive()
    assert (response.body, response.all(b"Connection")) == (b"finished", [b"close"])
    await stopping


async def test_slow_requests_are_aborted_when_the_server_stops(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0])
    await bench.server.stop(grace_seconds=0.05)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    assert [record.status for record in bench.records.finished_ones] == [499]
    await bench.upstream.peers[0].gone()


UNFINISHED = {
    "nothing": (b"", 499),
    "up to the end of the connection": (b"HTTP/1.1 200 OK\r\n\r\npart", 200),
    "of a known length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart", 200),
    "in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", 200),
}


@pytest.mark.parametrize("unfinished", UNFINISHED)
async def test_a_response_that_takes_too_long_is_reset_and_recorded_as_cut(set_up: SetUp, unfinished: str) -> None:
    begun, status = UNFINISHED[unfinished]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(begun)
        await peer.reader.read()

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    if begun:
        await client.reader.readuntil(b"part")
    else:
        await eventually(lambda: bench.upstream.peers and bench.upstream.seen[0])
    await bench.server.stop(grace_seconds=0)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    assert [(record.status, record.cut) for record in bench.records.finished_ones] == [(status, True)]
