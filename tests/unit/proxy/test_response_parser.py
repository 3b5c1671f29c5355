"""The responses of an upstream out of its bytes."""

import asyncio
from collections.abc import Iterator

import pytest

from sidecar.core.errors import UpstreamCause
from sidecar.proxy.response_parser import MAX_HEAD_BYTES, InvalidResponse, ResponseParser, UpstreamResponse

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = b"1\r\na\r\n"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def begun(loop: asyncio.AbstractEventLoop, head: bytes) -> tuple[ResponseParser, UpstreamResponse]:
    parser = ResponseParser(loop)
    parser.expect("GET")
    parser.feed(head)
    assert parser.response is not None
    return parser, parser.response


def test_chunks_that_come_together_are_handed_on_as_one_piece(loop: asyncio.AbstractEventLoop) -> None:
    parser, response = begun(loop, CHUNKED)
    pieces: list[bytes] = []
    taking = loop.create_task(response.stream_to(pieces.append))
    loop.run_until_complete(asyncio.sleep(0))
    for _ in range(3):
        parser.feed(SMALL * 1000)
    parser.feed(SMALL + b"0\r\n\r\n")
    loop.run_until_complete(taking)
    assert pieces == [b"a" * 1000] * 3 + [b"a"]
    assert parser.complete


def test_less_is_read_at_a_time_only_of_a_body_in_many_small_chunks(loop: asyncio.AbstractEventLoop) -> None:
    parser, _ = begun(loop, CHUNKED)
    assert not parser.in_small_pieces
    parser.feed(SMALL * 1000)
    assert parser.in_small_pieces
    parser.feed(SMALL * 3)
    assert not parser.in_small_pieces


ENDLESS = {
    "a trailer": (b"0\r\nX-A: ", b"a" * 4096),
    "trailers": (b"0\r\n", b"X-A: a\r\n" * 512),
    "an extension": (b"1;a=", b"b" * 4096),
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_chunks_and_extensions_without_data_are_bounded(loop: asyncio.AbstractEventLoop, endless: str) -> None:
    begin, more = ENDLESS[endless]
    parser, _ = begun(loop, CHUNKED + SMALL + begin)
    with pytest.raises(InvalidResponse) as invalid:
        for _ in range(2 * MAX_HEAD_BYTES // len(more)):
            parser.feed(more)
    assert invalid.value.cause is UpstreamCause.BAD_CHUNK


def test_a_body_of_small_chunks_with_extensions_may_be_of_any_length(loop: asyncio.AbstractEventLoop) -> None:
    parser, response = begun(loop, CHUNKED)
    for _ in range(100):
        parser.feed(b"1;extension=of-this-chunk\r\na\r\n" * 100)
    assert response.take() == b"a" * 10_000


def test_fields_named_by_connection_are_not_response_headers(loop: asyncio.AbstractEventLoop) -> None:
    lines = b"Connection: date, x-a\r\nDate: x\r\nX-A: 1\r\nX-B: 2\r\nContent-Length: 0\r\n\r\n"
    _, response = begun(loop, b"HTTP/1.1 200 OK\r\n" + lines)
    assert response.headers == [(b"X-B", b"2"), (b"Content-Length", b"0")]
    assert response.names == {b"x-b"}


@pytest.mark.parametrize("phrase", [b"a\x00", b"a\x1fb", b"\x7f", b"\x0b"])
def test_a_reason_phrase_with_controls_is_refused(loop: asyncio.AbstractEventLoop, phrase: bytes) -> None:
    with pytest.raises(InvalidResponse) as invalid:
        begun(loop, b"HTTP/1.1 200 " + phrase + b"\r\nContent-Length: 0\r\n\r\n")
    assert invalid.value.cause is UpstreamCause.BAD_STATUS


def test_an_interim_response_loses_its_length_as_a_204_does(loop: asyncio.AbstractEventLoop) -> None:
    interim: list[object] = []
    parser = ResponseParser(loop)
    parser.expect("GET", informational=lambda status, reason, headers: interim.append((status, headers)))
    parser.feed(b"HTTP/1.1 103 Hints\r\nContent-Length: 2\r\nLink: </a>\r\n\r\n")
    parser.feed(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n")
    assert interim == [(103, [(b"Link", b"</a>")])]
    assert parser.response is not None and parser.response.headers == []
