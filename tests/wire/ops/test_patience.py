"""How the operators' listeners handle slow or many clients."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from sidecar.config.fields import Address
from sidecar.http.hardened import ServerLimits, serving_app

LARGE = 32 * 1024 * 1024
PATIENCE_SECONDS = 20.0
"""For what arrives immediately or never: long enough for a slow machine."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


async def _small(_: web.Request) -> web.Response:
    return web.Response(text="small")


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=bytes(LARGE))


@asynccontextmanager
async def listening(
    limits: ServerLimits, before_slow: Callable[[], Awaitable[object]] | None = None
) -> AsyncIterator[Connect]:
    """A listener with three responses, and how to connect to it."""

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        if before_slow is not None:
            await before_slow()
        return web.Response(text="slow")

    app = web.Application()
    app.router.add_route("*", "/slow", slow)
    app.router.add_get("/small", _small)
    app.router.add_get("/large", _large)
    opened: list[asyncio.StreamWriter] = []
    async with serving_app(app, [Address(host="127.0.0.1", port=0)], limits=limits) as (address,):

        async def connect() -> Streams:
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
            opened.append(writer)
            return reader, writer

        try:
            yield connect
        finally:
            for writer in opened:
                writer.transport.abort()


async def response(reader: asyncio.StreamReader) -> bytes:
    """Everything until the other end closes, or nothing if it was cut off."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await reader.read(-1)
    except ConnectionResetError:
        return b""


async def ask(streams: Streams, path: str = "/small", *, more: bytes = b"") -> bytes:
    """The first line of the answer; `more` follows the request at once."""
    reader, writer = streams
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode() + more)
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await reader.readline()


@pytest.mark.parametrize("sent", [b"", b"GET /small HTTP/1.1\r\nHost: local", b"G"])
async def test_a_missing_head_is_waited_for_only_until_the_timeout(sent: bytes) -> None:
    async with listening(ServerLimits(head_seconds=0.2)) as connect:
        reader, writer = await connect()
        writer.write(sent)
        told = await response(reader)
        assert told.startswith(b"HTTP/1.1 408 ") and b"no-store" in told and b"localhost" not in told


async def test_a_head_sent_byte_by_byte_does_not_get_more_time() -> None:
    async with listening(ServerLimits(head_seconds=1)) as connect:
        reader, writer = await connect()
        assert await ask((reader, writer)) == b"HTTP/1.1 200 OK\r\n"
        # On a connection that has served a request as well.
        writer.write(b"GET /")
        ended = asyncio.ensure_future(response(reader))
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.05)
        assert b" 408 " in ended.result()


async def test_between_two_requests_there_is_more_time() -> None:
    async with listening(ServerLimits(head_seconds=0.7, idle_seconds=4)) as connect:
        streams = await connect()
        assert await ask(streams) == b"HTTP/1.1 200 OK\r\n"
        other, writer = await connect()
        assert b" 408 " in await response(other)
        writer.close()
        assert await ask(streams, more=b"") != b""
        assert b" 408 " not in await response(streams[0])


async def test_an_unread_response_is_aborted() -> None:
    async with listening(ServerLimits(connections=2, stuck_seconds=1)) as connect:
        reader, writer = await connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # A client that reads gets all of it meanwhile, and continues.
        steady = await connect()
        assert await ask(steady, "/large") == b"HTTP/1.1 200 OK\r\n"
        await steady[0].readuntil(b"\r\n\r\n")
        assert len(await steady[0].readexactly(LARGE)) == LARGE
        while await _turned_away(await connect()):
            assert await ask(steady) == b"HTTP/1.1 200 OK\r\n"
            await steady[0].readuntil(b"small")
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await response(reader)) < LARGE


GET_SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST_CHUNKS = b"POST /slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (GET_SLOW, 1),
        (GET_SLOW * 3, 3),
        (GET_SLOW + GET_SLOW[:20], 1),
        (POST_CHUNKS + b"0\r\n\r\n", 1),
        (GET_SLOW + POST_CHUNKS + b"0\r\n\r\n", 2),
        (GET_SLOW[:20], 0),
        (b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc", 0),
        (b"", 0),
    ],
    ids=repr,
)
async def test_a_client_that_has_ended_its_side_gets_every_response_and_then_the_end(sent: bytes, answers: int) -> None:
    gone = asyncio.Semaphore(0)
    async with listening(ServerLimits(head_seconds=600), before_slow=gone.acquire) as connect:
        reader, writer = await connect()
        writer.write(sent)
        writer.write_eof()
        for _ in range(100):  # Turns of the loop, in which the end comes while the response waits.
            await asyncio.sleep(0)
        for _ in range(answers):
            gone.release()
        assert (await response(reader)).count(b"slow") == answers


async def test_a_client_that_has_ended_its_side_within_a_body_is_not_waited_for() -> None:
    async with listening(ServerLimits(head_seconds=0.2)) as connect:
        reader, writer = await connect()
        writer.write(POST_CHUNKS)
        writer.write_eof()
        assert await response(reader) == b""


async def test_a_client_that_resets_frees_its_place_while_its_request_continues() -> None:
    never = asyncio.Event()
    async with listening(ServerLimits(connections=1), before_slow=never.wait) as connect:
        _, writer = await connect()
        writer.write(GET_SLOW)
        await writer.drain()
        reset_on_close(writer)
        writer.transport.abort()
        while await _turned_away(await connect()):
            await asyncio.sleep(0)
        never.set()


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_connections_are_bounded_in_all_and_by_address_and_places_become_free() -> None:
    for limits in (ServerLimits(connections=3), ServerLimits(connections_per_address=3)):
        async with listening(limits) as connect:
            taken = [await connect() for _ in range(3)]
            assert [await ask(streams) for streams in taken] == [b"HTTP/1.1 200 OK\r\n"] * 3
            assert await response((await connect())[0]) == b""
            taken[0][1].write(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await response(taken[0][0])
            taken[0][1].close()
            while await _turned_away(await connect()):
                await asyncio.sleep(0)


async def _turned_away(streams: Streams) -> bool:
    try:
        return await ask(streams) == b""
    except ConnectionResetError:
        return True
