"""How a sidecar ends: readiness, running requests, and signals."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from sidecar.config.fields import Address
from tests.harness.running import Sidecar, StartSidecar
from tests.upstreams.scripted import PATIENCE_SECONDS, Peer, ScriptedUpstream, plain
from tests.wire.proxy.wire import RawClient, Received, get, post
from tests.wire.security.site import BASE

DELAY = 3.0
"""Longer than a slow machine needs for what happens before it is over."""
ANSWERS = 20
"""As many take a tenth of a second, or longer where the machine is slow."""
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """A sidecar, and an upstream that answers `/public/slow` when it is told to."""

    sidecar: Sidecar
    release: asyncio.Event
    waiting: asyncio.Event
    """A slow request has reached the upstream."""
    clients: list[RawClient] = field(default_factory=list)

    async def client(self) -> RawClient:
        return await self._connect(self.sidecar.data)

    async def ask(self) -> Received:
        return await (await self.client()).ask(get("/public/fast"))

    async def ready(self) -> Received:
        return await (await self._connect(self.sidecar.ops)).ask(get("/readyz"))

    def terminate(self) -> None:
        self.sidecar.process.signal(signal.SIGTERM)

    async def until(self, holds: Callable[[Received], bool]) -> None:
        """Until readiness is as wanted."""
        while not holds(await self.ready()):
            pass

    async def is_shut(self) -> None:
        """Until no connection is accepted any longer."""
        place = self.sidecar.data
        while True:
            try:
                client = await RawClient.connect(Address(host=place[0], port=place[1]))
            except ConnectionError:
                return
            await client.close()

    async def _connect(self, place: tuple[str, int]) -> RawClient:
        client = await RawClient.connect(Address(host=place[0], port=place[1]))
        self.clients.append(client)
        return client

    async def ended(self) -> int:
        return await asyncio.to_thread(self.sidecar.process.wait)


@asynccontextmanager
async def draining(start: StartSidecar, *, delay: float = DELAY, timeout: str = "30s") -> AsyncIterator[Draining]:
    release, waiting = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if b"/slow" in request:
                waiting.set()
                await release.wait()
            await peer.send(UPGRADED if b"/tunnel" in request else plain())

    upstream = ScriptedUpstream(script)
    await upstream.start()
    try:
        config = BASE + f"drain: {{delay: {int(delay * 1000)}ms, timeout: {timeout}}}\n"
        sidecar = start(config, upstream_url=f"http://127.0.0.1:{upstream.address.port}")
        running = Draining(sidecar=sidecar, release=release, waiting=waiting)
        yield running
        for client in running.clients:
            await client.close()
    finally:
        await upstream.stop()


@pytest.mark.requirement("R4.1")
async def test_readiness_turns_at_once_and_connections_are_still_accepted(start_sidecar: StartSidecar) -> None:
    async with draining(start_sidecar) as running:
        assert (await running.ready()).status == 200
        began = time.monotonic()
        running.terminate()
        assert 503 in [(await running.ready()).status for _ in range(ANSWERS)]
        assert (await running.ready()).body == b"drain: shutting down\n"
        response = await running.ask()
        assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        await running.is_shut()
        assert time.monotonic() - began > DELAY - 0.1
        assert await running.ended() == 0


@pytest.mark.requirement("R4.1")
async def test_requests_in_progress_are_finished(start_sidecar: StartSidecar) -> None:
    async with draining(start_sidecar, delay=0.2) as running:
        slow, kept, half = [await running.client() for _ in range(3)]
        assert (await kept.ask(get("/public/fast"))).status == 200
        await slow.send(get("/public/slow"))
        await running.waiting.wait()
        head = get("/public/fast")
        await half.send(head[:20])
        await running.ask()  # By now the half head has arrived, too.
        running.terminate()
        await running.is_shut()
        assert await kept.rest() == b""
        await half.send(head[20:])
        response = await half.receive()
        assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        running.release.set()
        response = await slow.receive()
        assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        assert await running.ended() == 0


@pytest.mark.requirement("R4.1")
async def test_a_connection_just_accepted_may_still_send_a_request(start_sidecar: StartSidecar) -> None:
    async with draining(start_sidecar, delay=0) as running:
        new = await running.client()
        await running.ask()
        running.terminate()
        await running.is_shut()
        response = await new.ask(get("/public/fast"))
        assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        assert await running.ended() == 0


@pytest.mark.requirement("R4.1")
async def test_connections_that_only_the_kernel_knows_of_are_answered(start_sidecar: StartSidecar) -> None:
    """The process is stopped while they arrive, and gets SIGTERM before it can accept them."""
    async with draining(start_sidecar, delay=0) as running:
        running.sidecar.process.signal(signal.SIGSTOP)
        clients = [await running.client() for _ in range(30)]
        for client in clients:
            await client.send(get("/public/fast"))
        running.terminate()
        running.sidecar.process.signal(signal.SIGCONT)
        for client in clients:
            response = await client.receive()
            assert (response.status, response.all(b"Connection")) == (200, [b"close"])
        assert await running.ended() == 0


@pytest.mark.requirement("R4.1")
async def test_under_load_no_request_fails(start_sidecar: StartSidecar) -> None:
    """For clients that respect `Connection: close`, and move away before the delay is over, as balancers do."""
    async with draining(start_sidecar) as running:
        statuses: list[int] = []
        leaving = asyncio.Event()

        async def load() -> None:
            while not leaving.is_set():
                client, last = await running.client(), False
                while not last:
                    response = await client.ask(post(b"hello", target="/public/fast"))
                    statuses.append(response.status)
                    last = response.all(b"Connection") == [b"close"]

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(load())
            while len(statuses) < 200:
                await asyncio.sleep(0)
            running.terminate()
            await running.until(lambda response: response.status == 503)
            before = len(statuses)
            while len(statuses) < before + 100:
                await asyncio.sleep(0)
            leaving.set()
        assert set(statuses) == {200}
        assert await running.ended() == 0


@pytest.mark.requirement("R4.1")
async def test_an_exchange_beyond_the_timeout_is_cut_off(start_sidecar: StartSidecar) -> None:
    async with draining(start_sidecar, delay=0, timeout="300ms") as running:
        slow, tunnel = await running.client(), await running.client()
        response = await tunnel.ask(get("/public/tunnel", b"Connection: upgrade", b"Upgrade: echo"))
        assert response.status == 101
        await slow.send(get("/public/slow"))
        await running.waiting.wait()
        began = time.monotonic()
        running.terminate()
        assert await running.ended() == 0
        assert 0.3 <= time.monotonic() - began < PATIENCE_SECONDS
        with suppress(ConnectionResetError):
            assert await slow.rest() == b""
        with suppress(ConnectionResetError):
            assert await tunnel.rest() == b""


@pytest.mark.requirement("R4.1")
@pytest.mark.parametrize("first", ["delay", "timeout"])
async def test_a_second_sigterm_ends_it_at_once(start_sidecar: StartSidecar, first: str) -> None:
    """While connections are still accepted, and while requests are waited for."""
    async with draining(start_sidecar, delay=60 if first == "delay" else 0, timeout="60s") as running:
        slow = await running.client()
        await slow.send(get("/public/slow"))
        await running.waiting.wait()
        running.terminate()
        await (running.is_shut() if first == "timeout" else running.until(lambda response: response.status == 503))
        began = time.monotonic()
        running.terminate()
        assert await running.ended() == 0
        assert time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.requirement("R4.1")
async def test_an_interrupt_finishes_without_waiting_for_balancers(start_sidecar: StartSidecar) -> None:
    async with draining(start_sidecar, delay=60) as running:
        slow = await running.client()
        await slow.send(get("/public/slow"))
        await running.waiting.wait()
        running.sidecar.process.signal(signal.SIGINT)
        await running.is_shut()
        running.release.set()
        assert (await slow.receive()).status == 200
        assert await running.ended() == 0
