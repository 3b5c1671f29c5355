"""One connection to the upstream, by what it does to its transport."""

import asyncio

from sidecar.proxy.response_parser import UpstreamResponse
from sidecar.proxy.transport import STREAM_READ_BYTES, HeldBytes, WriteBatcher
from sidecar.proxy.upstream_connection import UpstreamConnection

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
FULL = bytes(STREAM_READ_BYTES)


class Reading(asyncio.Transport):
    """Of which only reading matters."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It takes everything."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """It goes nowhere."""

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


async def streaming() -> tuple[Reading, UpstreamConnection, UpstreamResponse, "asyncio.Task[None]"]:
    loop, transport = asyncio.get_running_loop(), Reading()
    connection = UpstreamConnection(
        loop, WriteBatcher(loop), 60.0, HeldBytes(1 << 30), on_idle=lambda _: None, on_closed=lambda _: None
    )
    connection.connection_made(transport)
    waiter: asyncio.Future[UpstreamResponse] = loop.create_future()
    connection.begin((b"GET / HTTP/1.1\r\n\r\n",), "GET", waiter=waiter)
    connection.data_received(HEAD)
    task = loop.create_task(waiter.result().stream_to(lambda data: None))
    await asyncio.sleep(0)
    return transport, connection, waiter.result(), task


async def test_an_upstream_that_is_faster_than_we_are_is_read_from_once_a_turn() -> None:
    transport, connection, _, task = await streaming()
    for _ in range(3):
        connection.data_received(FULL)
        assert not transport.reads
        await asyncio.sleep(0)
        assert transport.reads
    connection.data_received(FULL[1:])
    assert transport.reads
    task.cancel()
    connection.connection_lost(None)


async def test_a_paused_response_is_still_paused_a_turn_later() -> None:
    transport, connection, response, task = await streaming()
    connection.data_received(FULL)
    response.pause_reading()
    await asyncio.sleep(0)
    assert not transport.reads
    response.resume_reading()
    assert transport.reads
    task.cancel()
    connection.connection_lost(None)
