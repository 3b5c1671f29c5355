"""What is under way ends when the key it was let through with is not good any longer."""

import asyncio
from contextlib import suppress

import pytest

from sidecar.core.errors import Reason
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer
from tests.wire.proxy.conftest import Bench, SetUp, eventually
from tests.wire.proxy.test_upgrade import echo, open_tunnel, tunnelling
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
async def test_an_event_stream_of_a_revoked_key_is_broken_off(set_up: SetUp) -> None:
    bench = await set_up(events)
    client = await stream(bench)
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert bench.records.in_flight == 1
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    record = bench.records.finished_ones[0]
    assert (record.status, record.reason) == (200, Reason.REVOKED_KEY)


@pytest.mark.requirement("R1.6")
async def test_a_tunnel_of_a_revoked_key_is_broken_off(set_up: SetUp) -> None:
    bench = await set_up(tunnelling(echo))
    client, _ = await open_tunnel(bench)
    bench.gate.fallen_for = Reason.EXPIRED_KEY
    await bench.server.revalidate_streams(older_than_seconds=0)
    assert await ended(client)
    await bench.upstream.peers[0].gone()
    await eventually(lambda: bench.records.finished_ones)
    assert (bench.records.finished_ones[0].status, bench.records.finished_ones[0].reason) == (101, Reason.EXPIRED_KEY)


@pytest.mark.requirement("R1.6")
async def test_what_is_public_or_young_goes_on(set_up: SetUp) -> None:
    bench = await set_up(events)
    await stream(bench, "/public")
    await stream(bench, "/young")
    bench.gate.fallen_for = Reason.REVOKED_KEY
    await bench.server.revalidate_streams(older_than_seconds=60)
    assert bench.records.in_flight == 2
    await bench.server.revalidate_streams(older_than_seconds=0)
    await eventually(lambda: bench.records.in_flight == 1)


@pytest.mark.requirement("R1.6")
async def test_an_upload_of_a_revoked_key_is_broken_off(set_up: SetUp) -> None:
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
