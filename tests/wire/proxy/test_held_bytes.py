"""Memory for slow clients is bounded: downloads, uploads and tunnels both ways."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from sidecar.config.document import Limits
from sidecar.proxy.transport import reset
from tests.harness.waiting import eventually
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, plain
from tests.wire.proxy.conftest import MIB, Bench, SetUp
from tests.wire.proxy.test_upgrade import ASKING, SWITCHED
from tests.wire.proxy.wire import RawClient, get

LIMIT = 640 * 1024
"""So little that these clients read all of it."""
DOWN, UP = 128, 32
"""Downloading and uploading clients: fewer of the latter take as much memory."""
PIECE = bytes(65536)

Act = Callable[[Bench], Awaitable[RawClient]]


async def script(peer: Peer) -> None:
    """Depending on the target: sends endlessly, reads nothing, or both after an upgrade."""
    while True:
        head = await peer.head()
        if b" /ok " in head:
            await peer.send(plain())
            continue
        if b" /tunnel" in head:
            await peer.send(SWITCHED)
        elif b" /down" in head:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MIB))
        if b"/down" in head:
            while True:
                await peer.send(PIECE)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()


async def downloading(bench: Bench, *, target: str = "/down", asking: tuple[bytes, ...] = ()) -> RawClient:
    client = await bench.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(get(target, *asking))
    return client


async def tunnelling_down(bench: Bench) -> RawClient:
    return await downloading(bench, target="/tunnel/down", asking=ASKING)


async def uploading(bench: Bench) -> RawClient:
    client = await bench.client()
    await client.send(get("/up", b"Content-Length: %d" % (1024 * MIB), method="POST"))
    return sending_on(bench, client)


async def tunnelling_up(bench: Bench) -> RawClient:
    client = await bench.client()
    await client.send(get("/tunnel/up", *ASKING))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await client.reader.readuntil(b"\r\n\r\n")
    return sending_on(bench, client)


def sending_on(bench: Bench, client: RawClient) -> RawClient:
    """Sends as much as is accepted."""

    async def send() -> None:
        with suppress(ConnectionError):
            while True:
                await client.send(PIECE)

    task = asyncio.get_running_loop().create_task(send())
    bench.stack.callback(task.cancel)
    return client


@pytest.mark.requirement("S7.3")
@pytest.mark.parametrize("act", [downloading, uploading, tunnelling_down, tunnelling_up])
async def test_memory_for_slow_clients_is_limited(set_up: SetUp, act: Act) -> None:
    """Above it, some are reset and counted, others are served meanwhile, and nothing is held once they are gone."""
    limits = Limits(held_bytes=LIMIT)
    bench = await set_up(script, listener={"limits": limits}, max_connections=2 * DOWN, answer_timeout=60.0)
    clients = [await act(bench) for _ in range(UP if act in (uploading, tunnelling_up) else DOWN)]
    await eventually(lambda: "held_bytes" in bench.records.turned)
    await eventually(lambda: bench.held.total > LIMIT // 4)
    assert bench.held.total <= LIMIT
    assert (await bench.ask(get("/ok"))).body == b"ok"
    for client in clients:
        with suppress(OSError):  # It is already closed.
            reset(client.writer.transport)  # type: ignore[arg-type]
    await eventually(lambda: bench.held.total == 0)


async def test_a_download_that_pauses_now_and_then_is_not_held_against_the_client(set_up: SetUp) -> None:
    bench = await set_up(script, listener={"limits": Limits(held_bytes=MIB)})
    client = await bench.client()
    await client.send(get("/down"))
    await client.reader.readuntil(b"\r\n\r\n")
    for _ in range(3):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await eventually(lambda: bench.held.total > 0)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readexactly(16 * MIB)
    assert bench.records.turned == []
