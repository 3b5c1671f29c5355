"""Clients that send garbage get our own response, quietly."""

import logging

import pytest

from sidecar.core.errors import Reason
from tests.upstreams.scripted import answering, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get

CANARY = b"c4nary"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + CANARY + b"\r\n\r\n", 400),
        (b"GET /" + CANARY + b" x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: " + CANARY + b"\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: " + CANARY + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + CANARY + b" : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00" + CANARY + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n " + CANARY + b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY, 400),
        (b"\x00" * 20 + b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    ],
)
async def test_malformed_requests_get_our_response_and_no_log_line(
    set_up: SetUp, caplog: pytest.LogCaptureFixture, raw: bytes, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(raw)
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in response
    assert b"\r\nCache-Control: no-store\r\n" in response
    assert CANARY not in response
    assert b"aiohttp" not in response.lower()
    assert bench.upstream.peers == []
    assert [seen for seen, _ in bench.records.malformed_ones] == [status]
    assert [record for record in caplog.records if record.name.startswith(("aiohttp", "sidecar"))] == []


async def test_a_failure_of_ours_is_a_500_logged_once_without_the_requests_bytes(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    await client.send(get("/broken", b"X: c4nary"))
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 500 ")
    assert response.endswith(b"\r\n\r\ninternal")
    assert bench.records.finished_ones[0].reason is Reason.INTERNAL
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("sidecar")]
    assert "RuntimeError" in line
    assert "secret" not in caplog.text
    assert "/broken" not in caplog.text


async def test_head_gets_the_length_of_our_answer_and_no_body(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    client = await bench.client()
    response = await client.ask(get("/denied", method="HEAD"))
    assert (response.status, response.all(b"Content-Length")) == (401, [b"18"])
    assert (await client.ask(get())).body == b"ok"


async def test_a_bad_request_after_a_good_one_is_refused_after_it(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"good")))
    client = await bench.client()
    assert (await client.ask(get())).body == b"good"
    await client.send(b"nonsense\r\n\r\n")
    response = await client.rest()
    assert response.startswith(b"HTTP/1.1 400 ")


async def test_an_offer_to_upgrade_to_what_is_not_supported_is_ignored(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"no"), plain(b"next")))
    client = await bench.client()
    first = await client.ask(get("/x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"))
    second = await client.ask(get("/next"))
    assert (first.body, first.all(b"Connection"), second.body) == (b"no", [], b"next")
    assert b"upgrade" not in bench.upstream.seen[0].lower()


async def test_what_follows_an_offer_to_upgrade_at_once_is_not_read_as_a_request(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"no")))
    client = await bench.client()
    await client.send(get("/x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + get("/lost"))
    response = await client.rest()
    assert response.count(b"HTTP/1.1 ") == 1 and b"\r\nConnection: close\r\n" in response
    assert b"/lost" not in bench.upstream.seen[0]
