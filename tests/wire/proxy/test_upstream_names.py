"""The upstream's name changes its address, which is followed under constant traffic.

On loops that resolve one more name than the machine, so that no privileges are needed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from sidecar.config.fields import Address
from tests.upstreams.scripted import PATIENCE_SECONDS, ScriptedUpstream, answering, plain
from tests.wire.proxy.conftest import Bench, LoopFactories, SetUp
from tests.wire.proxy.wire import get

NAME = "upstream.test"
CLIENTS = 8
Start = Callable[..., Awaitable[Bench]]


class Names:
    """A mixin for loops: the address of NAME for each new connection."""

    address = "127.0.0.1"

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        found = self.address if host == NAME else host
        return await super().create_connection(factory, found, port, **options)  # type: ignore[misc]


class SelectorLoop(Names, asyncio.SelectorEventLoop):
    """asyncio's."""


class UvLoop(Names, uvloop.Loop):
    """uvloop's."""


LOOPS: LoopFactories = {"asyncio": SelectorLoop, "uvloop": UvLoop}


def move(address: str) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Names)
    loop.address = address


@pytest.fixture
def start(set_up: SetUp) -> Start:
    """`await start(**settings)`: a listener in front of NAME, which is one server at first and another after `move`."""

    async def before_name(**settings: Any) -> Bench:
        first, second = ScriptedUpstream(answering(plain(b"first"))), ScriptedUpstream(answering(plain(b"second")))
        await first.start()
        await second.start(host="127.0.0.2", port=first.address.port)
        bench = await set_up(answering(), address=Address(host=NAME, port=first.address.port), **settings)
        bench.stack.push_async_callback(first.stop)
        bench.stack.push_async_callback(second.stop)
        return bench

    return before_name


async def ask_until(bench: Bench, wanted: bytes) -> None:
    """One request after another, without a pause, until the response is `wanted`."""
    client = await bench.client()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await client.ask(get())).body != wanted:
            pass


@pytest.mark.requirement("R1.7")
@pytest.mark.parametrize("most", [1, CLIENTS], ids=["fewer-connections-than-clients", "one-for-each-client"])
async def test_a_changed_dns_name_is_followed_while_every_connection_is_in_use(start: Start, most: int) -> None:
    bench = await start(max_connection_age=0.1, max_connections=most)
    await asyncio.gather(*(ask_until(bench, b"first") for _ in range(CLIENTS)))
    move("127.0.0.2")
    await asyncio.gather(*(ask_until(bench, b"second") for _ in range(CLIENTS)))


@pytest.mark.requirement("R1.7")
async def test_an_unused_connection_closes_at_its_maximum_age(start: Start) -> None:
    """Its successor finds the new address, although `idle_timeout` is far away."""
    bench = await start(max_connection_age=0.1)
    client = await bench.client()
    assert (await client.ask(get())).body == b"first"
    move("127.0.0.2")
    loop = asyncio.get_running_loop()
    aged = loop.create_future()
    loop.call_later(0.1, aged.set_result, None)
    await aged
    assert (await client.ask(get())).body == b"second"


async def test_without_a_maximum_age_a_connection_is_kept(start: Start) -> None:
    bench = await start(max_connection_age=None)
    client = await bench.client()
    assert (await client.ask(get())).body == b"first"
    move("127.0.0.2")
    assert [(await client.ask(get())).body for _ in range(100)] == [b"first"] * 100
