"""Each request gets its own connection, whatever happens to the requests."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar.config.document import UpstreamSettings
from sidecar.config.fields import UpstreamUrl
from sidecar.proxy.pool import Pool
from tests.upstreams.scripted import ScriptedUpstream, answering, plain


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """Of one connection."""
    upstream = ScriptedUpstream(answering(plain()))
    await upstream.start()
    pool = Pool(
        UpstreamSettings(
            url=UpstreamUrl(address=upstream.address), max_connections=1, connect_timeout=60.0, queue_timeout=60.0
        ),
        loop=asyncio.get_running_loop(),
    )
    yield pool
    pool.close()
    await upstream.stop()


async def waiting(pool: Pool) -> asyncio.Task[object]:
    task: asyncio.Task[object] = asyncio.get_running_loop().create_task(pool.acquire())
    await asyncio.sleep(0)
    return task


async def test_a_connection_for_a_cancelled_request_goes_to_the_next_one(pool: Pool) -> None:
    connection = await pool.acquire()
    gone, following = await waiting(pool), await waiting(pool)
    pool.release(connection)
    gone.cancel()
    assert await following is connection


async def test_a_turn_of_a_cancelled_request_goes_to_the_next(pool: Pool) -> None:
    connection = await pool.acquire()
    gone, following = await waiting(pool), await waiting(pool)
    pool.forget(connection)
    gone.cancel()
    assert await following is not connection


async def test_a_request_that_gives_up_waiting_takes_no_turn(pool: Pool) -> None:
    connection = await pool.acquire()
    gone, following = await waiting(pool), await waiting(pool)
    gone.cancel()
    await asyncio.sleep(0)
    pool.release(connection)
    assert await following is connection
    connection.abort()
