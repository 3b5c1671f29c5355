"""The requests of a connection out of its bytes, however they arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.errors import Reason
from sidecar.http.requests import HeadLimits, MalformedHead, MessageHead
from sidecar.proxy.request_parser import END, MOST_EXTRA_BYTES, MOST_TRAILERS, BrokenBody, RequestParser
from tests.harness.framing import AMBIGUOUS, BROKEN_CHUNKS, UNSUPPORTED_CODINGS, name_of
from tests.harness.headers import BROKEN_LINES

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'3;a;b=c;d="e\\";"\r\nabc\r\n0000a\r\n0123456789\r\n0;x\r\nX-T: 1\r\nHost: evil\r\n\r\n'


def a_parser() -> RequestParser:
    return RequestParser(HeadLimits())


def head_of(*lines: bytes, start: bytes = b"POST /a HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: a", *lines, b"", b""])


def parsed(raw: bytes, *, sizes: list[int] | None = None) -> list[tuple[str, bytes]]:
    """The target and body of each whole request in `raw`, which comes in pieces of `sizes`, over and over."""
    parser, found, at, turn = a_parser(), list[tuple[str, bytes]](), 0, 0
    target, body = "", b""
    while at < len(raw):
        size = sizes[turn % len(sizes)] if sizes else len(raw)
        events = list(parser.feed(raw[at : at + size]))
        at, turn = at + size, turn + 1
        while events:
            event = events.pop(0)
            if isinstance(event, MessageHead):
                target, body = event.target, b""
            elif isinstance(event, bytes):
                body += event
            else:
                assert event is END and not events
                found.append((target, body))
                events = list(parser.next_request())
    return found


def head(raw: bytes) -> MessageHead:
    event = next(a_parser().feed(raw))
    assert isinstance(event, MessageHead)
    return event


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_requests_and_bodies_are_the_same_however_they_arrive(sizes: list[int]) -> None:
    raw = b"\r\n" + GET + head_of(b"Content-Length: 005") + b"\r\n\r\nG" + CHUNKED + BODY + GET
    assert parsed(raw, sizes=sizes) == [("/a", b""), ("/a", b"\r\n\r\nG"), ("/a", b"abc0123456789"), ("/a", b"")]


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("fields", AMBIGUOUS, ids=name_of)
def test_ambiguous_framing_is_refused(fields: tuple[bytes, ...], size: int) -> None:
    with pytest.raises(MalformedHead) as refused:
        parsed(head_of(*fields), sizes=[size])
    assert refused.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("coding", UNSUPPORTED_CODINGS)
def test_an_unknown_transfer_coding_is_distinguished_from_a_malformed_one(coding: bytes) -> None:
    with pytest.raises(MalformedHead) as refused:
        parsed(head_of(b"Transfer-Encoding: " + coding))
    assert refused.value.reason is Reason.UNSUPPORTED_CODING


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("lines", BROKEN_LINES)
def test_lines_that_servers_disagree_about_are_refused(lines: bytes, size: int) -> None:
    with pytest.raises(MalformedHead):
        parsed(GET.removesuffix(b"\r\n") + lines + b"\r\n", sizes=[size])


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("body", BROKEN_CHUNKS)
def test_broken_chunks_break_the_body(body: bytes, size: int) -> None:
    with pytest.raises(BrokenBody):
        parsed(CHUNKED + body, sizes=[len(CHUNKED)] + [size] * len(body))


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "body",
    [
        b"1;" + b"x" * MOST_EXTRA_BYTES + b"\r\na\r\n0\r\n\r\n",
        b"1;abcdefghi\r\na\r\n" * (MOST_EXTRA_BYTES // 10 + 1) + b"0\r\n\r\n",
        b"0\r\nX: " + b"x" * MOST_EXTRA_BYTES + b"\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * MOST_TRAILERS + b"\r\n",
    ],
    ids=["one extension", "many extensions", "a trailer", "many trailers"],
)
def test_extensions_and_trailers_are_bounded(body: bytes, size: int) -> None:
    with pytest.raises(BrokenBody):
        parsed(CHUNKED + body, sizes=[size])


@pytest.mark.parametrize(("version", "read"), [(b"1.0", (1, 0)), (b"1.1", (1, 1)), (b"1.2", (1, 1)), (b"1.9", (1, 1))])
def test_a_higher_minor_version_is_read_as_1_1(version: bytes, read: tuple[int, int]) -> None:
    assert head(GET.replace(b"1.1", version)).version == read


@pytest.mark.parametrize(
    "start",
    [
        b"GET /a HTTP/1.10",
        b"GET /a HTTP/2.0",
        b"GET /a http/1.1",
        b"GET  /a HTTP/1.1",
        b"GET /a  HTTP/1.1",
        b"GET\t/a HTTP/1.1",
        b" GET /a HTTP/1.1",
        b"GET a HTTP/1.1",
        b"GET http:///a HTTP/1.1",
        b"GET ftp://a/ HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"G(T /a HTTP/1.1",
        b"GET *x HTTP/1.1",
    ],
)
def test_a_request_line_of_another_form_is_refused(start: bytes) -> None:
    with pytest.raises(MalformedHead):
        parsed(head_of(start=start))


@pytest.mark.parametrize("method", ["GET", "LIST", "m-search", "A" * 200, "!#$%&'*+-.^_`|~09Az"])
def test_any_token_is_a_method(method: str) -> None:
    assert head(head_of(start=f"{method} /a HTTP/1.1".encode())).method == method


@pytest.mark.parametrize("hosts", [[], [b"Host: a", b"host: a"]])
def test_a_request_has_one_host(hosts: list[bytes]) -> None:
    with pytest.raises(MalformedHead):
        parsed(b"\r\n".join([b"GET /a HTTP/1.1", *hosts, b"", b""]))


def test_the_length_is_passed_on_as_the_number_that_was_read() -> None:
    assert head(head_of(b"content-LENGTH:  0200 ")).framing == b"content-LENGTH: 200\r\n"


@pytest.mark.parametrize(
    ("version", "line", "kept"),
    [
        (b"1.1", b"X: y", True),
        (b"1.1", b"Connection: Close", False),
        (b"1.1", b"Connection: a, close ,b", False),
        (b"1.0", b"X: y", False),
        (b"1.0", b"Connection: Keep-Alive", True),
        (b"1.0", b"Connection: keep-alive, close", False),
    ],
)
def test_whether_another_request_may_follow(version: bytes, line: bytes, kept: bool) -> None:
    assert head(head_of(line, start=b"GET /a HTTP/" + version)).keep_alive is kept


def test_values_lose_the_white_space_around_them_and_nothing_else() -> None:
    assert head(head_of(b"A:\t b \xff c \t", b"B:", b"C:   ")).headers[1:] == (
        (b"A", b"b \xff c"),
        (b"B", b""),
        (b"C", b""),
    )


@pytest.mark.parametrize("name", [b"Content-Type", b"User-Agent", b"Max-Forwards"])
def test_a_single_value_header_may_occur_only_once(name: bytes) -> None:
    assert head(head_of(name + b": a", b"X: b"))
    with pytest.raises(MalformedHead):
        head(head_of(name + b": a", name.lower() + b": b"))


def test_no_part_of_a_head_passes_for_a_whole_one() -> None:
    for size in range(1, len(GET)):
        assert a_parser().read_whole(GET[:size]) is None
        assert a_parser().read_whole(GET + GET[:size]) is None
    whole = a_parser().read_whole(GET)
    assert whole is not None and whole.target == "/a"
