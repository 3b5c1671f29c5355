"""Nothing ends silently: valid requests before bad ones, clients that end their side, our own errors."""

import asyncio
import logging
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from msgspec import structs

from sidecar.config.document import Limits
from sidecar.core.errors import Reason
from tests.harness.waiting import eventually
from tests.upstreams.scripted import Peer, answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get


@pytest.mark.requirement("S3.9")
@pytest.mark.parametrize(
    "bad", [b"GET /b HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"GET /b HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"]
)
async def test_a_valid_request_is_served_whatever_follows_it_in_the_same_read(set_up: SetUp, bad: bytes) -> None:
    bench = await set_up(answering(plain(b"good")))
    client = await bench.client()
    await client.send(get("/a") + bad)
    assert (await client.receive()).body == b"good"
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert len(bench.upstream.seen) == 1


@pytest.mark.parametrize(("fields", "version"), [((b"Connection: close",), "1.1"), ((), "1.0")])
async def test_what_follows_the_last_request_of_a_connection_is_not_read(
    set_up: SetUp, fields: tuple[bytes, ...], version: str
) -> None:
    bench = await set_up(answering(plain(b"good"), plain(b"never")))
    client = await bench.client()
    await client.send(get("/a", *fields, version=version) + get("/never"))
    response = await client.rest()
    assert response.endswith(b"good") and response.count(b"HTTP/1.1 ") == 1
    assert b"/never" not in b"".join(bench.upstream.seen)


@pytest.mark.requirement("R1.3")
async def test_a_client_that_has_ended_its_side_gets_its_response(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0)
        await peer.send(plain(b"late"))

    bench = await set_up(script)
    client = await bench.client()
    await client.send(get())
    client.writer.write_eof()
    assert (await client.rest()).endswith(b"late")
    assert [record.status for record in bench.records.finished_ones] == [200]


@pytest.mark.requirement("R1.3")
async def test_the_upstream_is_not_waited_for_long_once_the_client_has_ended_its_side(set_up: SetUp) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        assert await peer.reader.read() == b""

    bench = await set_up(script, listener={"limits": Limits(half_closed_timeout=0.1)})
    client = await bench.client()
    await client.send(get())
    client.writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await bench.upstream.peers[0].gone()
    assert [record.status for record in bench.records.finished_ones] == [499]


@pytest.mark.requirement("R1.3")
async def test_a_client_that_has_ended_its_side_may_read_its_response_slowly(set_up: SetUp) -> None:
    body = bytes(32 << 20)

    async def script(peer: Peer) -> None:
        if b"/large" in await peer.request():
            await peer.send(plain(body))
        await peer.reader.read()

    bench = await set_up(script, listener={"limits": Limits(half_closed_timeout=0.1)})
    slow, other = await bench.client(), await bench.client()
    await slow.send(get("/large"))
    await slow.reader.readuntil(b"\r\n\r\n")
    slow.writer.write_eof()
    for _ in range(2):  # Meanwhile, who waits for the upstream is given up.
        await other.send(get())
        other.writer.write_eof()
        with pytest.raises(ConnectionResetError):
            await other.rest()
        other = await bench.client()
    assert len(await slow.rest()) == len(body)


async def test_options_of_the_server_is_answered_without_the_gate_and_the_upstream(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    response = await bench.ask(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (response.status, response.body) == (204, b"")
    assert bench.upstream.peers == []


async def test_the_servers_own_probe_is_neither_counted_nor_logged(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(connections=1)})
    client = await bench.client()
    assert (await client.ask(get())).status == 200
    for _ in range(3):
        assert await bench.server.answers()
    assert len(bench.records.finished_ones) == 1
    await eventually(lambda: len(list(bench.server._connections)) == 1)


async def test_an_error_of_ours_is_answered_logged_and_counted(set_up: SetUp, caplog: pytest.LogCaptureFixture) -> None:
    bench = await set_up(answering(plain()))
    bench.records.forwarding = lambda head, upstream: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with caplog.at_level(logging.ERROR):
        response = await bench.ask(get("/secret"))
    assert response.status == 500
    assert bench.records.internal_errors == 1
    assert [record.reason for record in bench.records.finished_ones] == [Reason.INTERNAL]
    assert "ZeroDivisionError" in caplog.text and "secret" not in caplog.text


class BrokenNumber(int):
    def __lt__(self, other: object) -> bool:
        raise LookupError(f"secret {other!r}")

    __le__ = __gt__ = __ge__ = __lt__


async def test_an_error_while_a_head_is_read_is_answered_logged_and_counted(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await set_up(answering(plain(b"well")))
    limits = structs.replace(bench.snapshot.limits, headers=BrokenNumber(100))
    bench.server.reconfigure(replace(bench.snapshot, limits=limits))
    whole, halves = await bench.client(), await bench.client()
    request = get("/secret", b"X-Secret: secret")
    with caplog.at_level(logging.ERROR):
        await whole.send(request)
        assert (await whole.rest()).startswith(b"HTTP/1.1 500 ")
        await halves.send(request[:9])
        await eventually(lambda: any(connection.receives_head for connection in bench.server._connections))
        await halves.send(request[9:])
        assert (await halves.rest()).startswith(b"HTTP/1.1 500 ")
    assert bench.records.internal_errors == 2
    assert bench.records.malformed_ones == [(500, Reason.INTERNAL)] * 2
    assert caplog.text.count("internal error: LookupError at ") == 2 and "test_never_silent.py:" in caplog.text
    assert "secret" not in caplog.text
    assert bench.upstream.peers == []
    bench.server.reconfigure(bench.snapshot)
    assert (await bench.ask(request)).body == b"well"


async def test_a_request_that_cannot_be_answered_is_reset_and_others_continue(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await set_up(answering(plain(b"well")))
    client, loop = await bench.client(), asyncio.get_running_loop()

    def no_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
        loop.set_task_factory(None)
        coroutine.close()
        raise MemoryError("secret")

    with caplog.at_level(logging.ERROR):
        loop.set_task_factory(no_task)
        await client.send(get("/secret", b"Connection: close"))
        with pytest.raises(ConnectionResetError):
            await client.rest()
    assert bench.records.internal_errors == 1
    assert "internal error: MemoryError at " in caplog.text and "secret" not in caplog.text
    assert (await bench.ask(get())).body == b"well"


@pytest.mark.parametrize("date", [b"Date: Tue, 15 Nov 1994 08:12:31 GMT", b"date: whatever"])
async def test_every_response_has_one_date_and_the_upstreams_own_stays(set_up: SetUp, date: bytes) -> None:
    bench = await set_up(answering(plain(b"dated", date), plain(b"undated")))
    client = await bench.client()
    assert (await client.ask(get())).dates == [date.partition(b": ")[2]]
    for response in (await client.ask(get()), await client.ask(get("/denied"))):
        [made] = response.dates
        assert abs(parsedate_to_datetime(made.decode()).timestamp() - time.time()) < 60


async def test_places_of_those_who_were_refused_are_free_again_when_their_time_is_over(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()), listener={"limits": Limits(connections=8), "quiet_seconds": 0.05})
    for _ in range(6):
        client = await bench.client()
        await client.send(b"no request\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    await eventually(lambda: not list(bench.server._connections))
    assert bench.server._connections.places.lingering == 0 and bench.server._connections.places.may_linger
