"""An upstream that fails, before the real process. Large bodies and names have files of their own."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.harness.running import StartSidecar
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, Script, plain
from tests.wire.proxy.wire import get
from tests.wire.security.behind import Behind, behind

TARGET = "/public/x"


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.reader.read()


async def resetting(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def half_a_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Le")


async def half_a_body(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def status_of(stage: Behind, raw: bytes) -> int:
    client = await stage.client()
    response = await client.ask(raw)
    await client.close()
    return response.status


async def quickest(stage: Behind, raw: bytes, status: int) -> float:
    """Seconds, of several answers of `status` one after the other: a busy machine holds up some of them, not all."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert await status_of(stage, raw) == status
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@contextmanager
def unreachable(*, listens: bool) -> Iterator[str]:
    """The URL of a port that nobody else can take: it refuses connections, or listens and takes none."""
    with ExitStack() as stack:
        place = stack.enter_context(socket.socket())
        place.bind(("127.0.0.1", 0))
        if listens:
            place.listen(0)
            for filler in [stack.enter_context(socket.socket()) for _ in range(4)]:
                filler.setblocking(False)
                filler.connect_ex(place.getsockname())
        yield f"http://127.0.0.1:{place.getsockname()[1]}"


@pytest.mark.requirement("R1.1")
async def test_a_refused_connection_is_a_502_within_a_second(start_sidecar: StartSidecar) -> None:
    with unreachable(listens=False) as url:
        async with behind(start_sidecar, silent, url=url) as stage:
            assert await quickest(stage, get(TARGET), 502) < 1


@pytest.mark.requirement("R1.1")
@pytest.mark.parametrize("script", [resetting, half_a_head])
async def test_a_connection_that_breaks_before_the_answer_is_a_502_within_a_second(
    start_sidecar: StartSidecar, script: Script
) -> None:
    async with behind(start_sidecar, script) as stage:
        assert await quickest(stage, get(TARGET), 502) < 1
        assert await quickest(stage, get(TARGET, method="POST"), 502) < 1


@pytest.mark.requirement("R1.1")
async def test_a_missing_response_is_a_504_at_the_timeout(start_sidecar: StartSidecar) -> None:
    async with behind(start_sidecar, silent, settings="answer_timeout: 400ms") as stage:
        assert 0.39 <= await quickest(stage, get(TARGET), 504) < 1


@pytest.mark.requirement("R1.1")
async def test_a_connection_attempt_that_times_out_is_a_504(start_sidecar: StartSidecar) -> None:
    with unreachable(listens=True) as url:
        async with behind(start_sidecar, silent, settings="connect_timeout: 400ms", url=url) as stage:
            assert 0.39 <= await quickest(stage, get(TARGET), 504) < 1


@pytest.mark.requirement("R1.2")
async def test_a_response_cut_off_midway_is_visibly_broken_and_counted(start_sidecar: StartSidecar) -> None:
    async with behind(start_sidecar, half_a_body) as stage:
        client = await stage.client()
        await client.send(get(TARGET))
        received = b""
        with pytest.raises(ConnectionResetError):
            while data := await client.reader.read(65536):
                received += data
        assert received.endswith(b"half")
        metrics = await asyncio.to_thread(stage.sidecar.metrics)
        await client.close()
    assert [line for line in metrics.splitlines() if "upstream_unreachable" in line and line.endswith(" 1.0")] != []


@pytest.mark.requirement("R1.3")
@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])
async def test_a_client_that_disconnects_ends_the_upstream_connection(
    start_sidecar: StartSidecar, response: bytes
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        asked.set()
        await peer.reader.read()

    async with behind(start_sidecar, script, settings="idle_timeout: 60s") as stage:
        client = await stage.client()
        await client.send(get(TARGET))
        await asked.wait()
        await client.close()
        await stage.upstream.peers[0].gone()


@pytest.mark.requirement("R1.4")
async def test_no_get_fails_and_no_post_arrives_twice_while_idle_connections_are_closed(
    start_sidecar: StartSidecar,
) -> None:
    """The upstream closes what was idle for a moment; clients ask just about then, 2,000 times."""
    arrived = Counter[bytes]()

    async def script(peer: Peer) -> None:
        idle: float | None = None
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(idle):
                    head = await peer.reader.readuntil(b"\r\n\r\n")
                arrived[head.split(b" ")[1]] += 1
                if idle is not None and arrived.total() % 20 == 0:
                    return  # without a word: only what may be sent twice, is
                await peer.send(plain())
                idle = 0.003 + peer.number % 5 * 0.001

    async with behind(start_sidecar, script) as stage:
        statuses = {"GET": Counter[int](), "POST": Counter[int]()}

        async def ask(first: int) -> None:
            client = await stage.client()
            for number in range(first, first + 400):
                await asyncio.sleep(number % 12 * 0.001)  # How long a connection idles is what is varied here.
                method = "POST" if number % 4 == 0 else "GET"
                response = await client.ask(get(f"/public/{number}", method=method))
                statuses[method][response.status] += 1
            await client.close()

        await asyncio.gather(*[ask(first) for first in range(0, 2000, 400)])
        assert len(stage.upstream.peers) > 100
    assert statuses["GET"] == {200: 1500}
    assert statuses["POST"].keys() == {200, 502}
    assert max(count for target, count in arrived.items() if int(target.rpartition(b"/")[2]) % 4 == 0) == 1


@pytest.mark.requirement("R1.5")
async def test_events_come_through_one_by_one(start_sidecar: StartSidecar) -> None:
    turn = asyncio.Queue[bytes]()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while event := await turn.get():
            await peer.send(event)

    async with behind(start_sidecar, script) as stage:
        client = await stage.client()
        await client.send(get(TARGET))
        await client.reader.readuntil(b"\r\n\r\n")
        for event in (b"x", b"data: 1\n\n", b"y"):
            turn.put_nowait(event)
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await client.reader.readexactly(len(event)) == event
        turn.put_nowait(b"")
        assert await client.rest() == b""
        await client.close()
