"""Limits on connections, and what is logged about unknown clients."""

import logging
from contextlib import suppress

import pytest

from sidecar.config.document import Limits
from tests.harness.waiting import eventually
from tests.upstreams.scripted import answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get


@pytest.mark.requirement("S7.1")
async def test_connections_over_the_limits_are_closed_until_others_end(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(connections=2)})
    first, second, third = [await bench.client() for _ in range(3)]
    with suppress(ConnectionResetError):
        assert await third.rest() == b""
    assert (await first.ask(get())).status == 200
    assert (await second.ask(get())).status == 200
    await first.close()
    await second.close()
    await eventually(lambda: not list(bench.server._connections))
    assert (await bench.ask(get())).status == 200
    caplog.set_level(logging.WARNING)
    await bench.server.stop(grace_seconds=0)
    assert "1 connection refused" in caplog.text
    assert bench.records.turned == ["connections"]


@pytest.mark.requirement("S7.1")
@pytest.mark.parametrize(("trusted", "served"), [(False, False), (True, True)])
async def test_connections_of_one_address_are_capped_unless_it_is_a_proxy(
    set_up: SetUp, trusted: bool, served: bool
) -> None:
    listener = {"limits": Limits(connections_per_address=1), "trusts": lambda peer: trusted}
    bench = await set_up(answering(plain()), listener=listener)
    first, second = await bench.client(), await bench.client()
    assert (await first.ask(get())).status == 200
    if served:
        assert (await second.ask(get())).status == 200
    else:
        with suppress(ConnectionResetError):
            assert await second.rest() == b""
    assert bench.records.turned == ([] if served else ["connections_per_address"])


@pytest.mark.requirement("S7.4")
async def test_many_malformed_requests_are_one_line_without_their_bytes(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench = await set_up(answering(plain()))
    for _ in range(20):
        client = await bench.client()
        await client.send(b"c4nary\r\n\r\n")
        await client.rest()
        await client.close()
    await bench.server.stop(grace_seconds=0)
    lines = [record for record in caplog.records if record.name.startswith(("sidecar", "aiohttp", "asyncio"))]
    told = [line.getMessage() for line in lines if line.levelno > logging.DEBUG]
    assert told == ["sidecar: 20 malformed requests refused in the last 10 s, last from 127.0.0.1: bad_request"]
    assert "c4nary" not in caplog.text
