"""Bytes arrive as they were sent, both ways."""

import gzip
import os

import pytest

from tests.upstreams.scripted import answering, closing_after, plain
from tests.wire.proxy.conftest import SetUp
from tests.wire.proxy.wire import get, post


async def test_request_headers_keep_bytes_order_case_and_duplicates(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    fields = (b"x-LOW: \xff\xfe caf\xc3\xa9", b"X-Twice: 1", b"Accept: */*", b"x-twice: 2,3", b"X-Empty:")
    await bench.ask(get("/a%20b+c;d=1?x=%2F+%2b&&z=%7E~", *fields))
    sent = bench.upstream.seen[0]
    assert sent == b"\r\n".join(
        [b"GET /a%20b+c;d=1?x=%2F+%2b&&z=%7E~ HTTP/1.1", b"Host: api.test", *fields[:4], b"X-Empty: ", b"", b""]
    )


async def test_answer_head_keeps_bytes_order_case_reason_and_duplicates(set_up: SetUp) -> None:
    head = (
        b"HTTP/1.1 299 Nicely d\xf6ne\r\nDATE: then\r\nset-COOKIE: a=1\r\nX-Raw: \xff\x80 x\r\n"
        b"Set-Cookie: b=2; Path=/\r\nContent-Length: 2\r\nX-Empty: \r\nProxy-Authenticate: Basic\r\n\r\n"
    )
    bench = await set_up(answering(head + b"hi"))
    client = await bench.client()
    await client.send(get())
    assert await client.reader.readexactly(len(head) + 2) == head + b"hi"


async def test_answer_without_reason_phrase_is_passed_on(set_up: SetUp) -> None:
    bench = await set_up(answering(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"))
    assert (await bench.ask(get())).status_line.rstrip() == b"HTTP/1.1 200"


async def test_nothing_but_a_date_is_added_to_a_response(set_up: SetUp) -> None:
    bench = await set_up(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"))
    assert (await bench.ask(get())).headers == [(b"Content-Length", b"1")]


async def test_our_fields_replace_the_upstreams_with_the_same_name(set_up: SetUp) -> None:
    told = ((b"X-RateLimit-Limit", b"10"),)
    bench = await set_up(answering(plain(b"x", b"x-ratelimit-limit: 99", b"X-RateLimit-Other: 1")), told=told)
    response = await bench.ask(get())
    assert response.all(b"X-RateLimit-Limit") == [b"10"]
    assert response.all(b"X-RateLimit-Other") == [b"1"]


async def test_hop_by_hop_fields_of_an_answer_are_not_passed_on(set_up: SetUp) -> None:
    fields = (b"Connection: keep-alive, X-Mine, Content-Length", b"X-Mine: 1", b"Keep-Alive: timeout=5", b"Trailer: x")
    bench = await set_up(answering(plain(b"abc", *fields, b"Upgrade: h2c", b"X-Other: 1")))
    response = await bench.ask(get())
    assert {name for name, _ in response.headers} == {b"Content-Length", b"X-Other"}
    assert response.body == b"abc"


@pytest.mark.requirement("S3.6")
async def test_coded_bodies_pass_byte_for_byte_invalid_ones_too(set_up: SetUp) -> None:
    for body in (gzip.compress(os.urandom(3000)), b"\x1f\x8b this is no gzip at all", b""):
        bench = await set_up(answering(plain(body, b"Content-Encoding: gzip")))
        response = await bench.ask(post(body, b"Content-Encoding: gzip"))
        assert response.body == body
        assert bench.upstream.seen[0].endswith(b"\r\n\r\n" + body)
        assert response.all(b"Content-Encoding") == [b"gzip"]


@pytest.mark.requirement("S2.11")
async def test_cookies_of_one_client_never_reach_another(set_up: SetUp) -> None:
    bench = await set_up(answering(plain(b"", b"Set-Cookie: session=secret"), plain()))
    first = await bench.ask(get())
    second = await bench.ask(get("/y", b"Cookie: mine=1"))
    assert first.all(b"Set-Cookie") == [b"session=secret"]
    assert second.all(b"Set-Cookie") == []
    assert len(bench.upstream.peers) == 1
    assert b"secret" not in bench.upstream.seen[0]


async def test_host_is_kept_replaced_or_a_literal(set_up: SetUp) -> None:
    for host, wanted in (("keep", b"api.test"), ("upstream", b"up:1"), ("other.test", b"other.test")):
        bench = await set_up(answering(plain()), host=host, authority="up:1")
        await bench.ask(get())
        assert b"\r\nHost: " + wanted + b"\r\n" in bench.upstream.seen[0]
        assert bench.upstream.seen[0].count(b"Host:") == 1


async def test_length_and_body_of_a_request_arrive_as_sent(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    await bench.ask(get("/x", b"content-LENGTH: 3", method="DELETE") + b"abc")
    assert bench.upstream.seen[0].endswith(b"\r\ncontent-LENGTH: 3\r\n\r\nabc")


async def test_an_empty_body_keeps_its_length_field_and_no_body_gets_none(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    await bench.ask(get("/x", b"Content-Length: 0", method="POST"))
    await bench.ask(get("/x", method="POST"))
    first, second = bench.upstream.seen[0].split(b"POST")[1:]
    assert b"Content-Length: 0\r\n" in first
    assert b"Content-Length" not in second


async def test_a_chunked_request_arrives_chunked(set_up: SetUp) -> None:
    bench = await set_up(answering(plain()))
    response = await bench.ask(get("/x", b"Transfer-Encoding: chunked", method="POST") + b"3;x=y\r\nabc\r\n0\r\n\r\n")
    assert response.status == 200
    assert bench.upstream.seen[0].endswith(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


async def test_unix_sockets_on_both_sides(set_up: SetUp) -> None:
    bench = await set_up(closing_after(plain(b"via unix")), unix=True)
    assert (await bench.ask(get())).body == b"via unix"
