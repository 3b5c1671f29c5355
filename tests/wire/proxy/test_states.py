"""A connection only takes the steps in its table."""

import asyncio
from collections.abc import Mapping
from enum import IntEnum

import pytest

from sidecar.proxy import client_connection, upstream_connection
from sidecar.proxy.transport import HeldBytes, IllegalStep, WriteBatcher
from sidecar.proxy.upstream_connection import UpstreamConnection
from tests.upstreams.scripted import answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get


@pytest.mark.parametrize("module", [client_connection, upstream_connection])
def test_every_state_has_its_steps_and_closed_is_the_end(module: object) -> None:
    states: type[IntEnum] = module.State  # type: ignore[attr-defined]
    steps: Mapping[IntEnum, frozenset[IntEnum]] = module.STEPS  # type: ignore[attr-defined]
    closed = states["CLOSED"]
    assert set(steps) == set(states)
    assert all(closed in allowed for allowed in steps.values())
    assert steps[closed] == {closed}
    reached = {after for state, allowed in steps.items() for after in allowed if after is not state}
    assert reached == set(states) - {states["NEW"]}


async def test_an_upstream_connection_carries_one_exchange_at_a_time(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    loop, released = asyncio.get_running_loop(), list[UpstreamConnection]()
    _, connection = await loop.create_connection(
        lambda: UpstreamConnection(
            loop,
            WriteBatcher(loop),
            60.0,
            HeldBytes(1 << 20),
            on_idle=released.append,
            on_closed=lambda connection: None,
        ),
        bench.upstream.address.host,
        bench.upstream.address.port,
    )
    first, second = loop.create_future(), loop.create_future()
    connection.begin((get("/x"),), "GET", waiter=first)
    with pytest.raises(IllegalStep):
        connection.begin((get("/x"),), "GET", waiter=second)
    assert (await first).status == 200
    assert released == [connection]
    connection.abort()
    assert connection.held_by_client
    with pytest.raises(upstream_connection.Stale):
        connection.begin((get("/x"),), "GET", waiter=second)
        await second
