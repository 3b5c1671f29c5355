"""Where requests begin and end, however their bytes arrive."""

import pytest

from sidecar.core.errors import Reason
from sidecar.http.requests import HeadLimits, MalformedHead, Phase, RequestSequence
from tests.harness.framing import AMBIGUOUS
from tests.harness.headers import BROKEN_LINES

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD_OF_POST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
HEAD_OF_CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"\r\n\r\nGE"


def sequence(**limits: int) -> RequestSequence:
    return RequestSequence(HeadLimits(**limits))


def answered(requests: RequestSequence, raw: bytes, *, size: int) -> list[bytes]:
    """Each request as it is passed on; `raw` comes in pieces of `size`, and each response ends at once."""
    passed = [b""]
    for start in range(0, len(raw), size):
        data = raw[start : start + size]
        while True:
            passed[-1] += b"".join(requests.feed(data))
            if requests.phase is not Phase.RESPONSE:
                break
            requests.end_response(keep_alive=True)
            passed.append(b"")
            data = b""
    return passed


@pytest.mark.parametrize("size", [1, 2, 3, 7, 29, 1000])
def test_requests_are_passed_on_one_at_a_time_however_they_arrive(size: int) -> None:
    raw = GET + b"\r\n\r\n" + HEAD_OF_POST + BODY + GET
    assert answered(sequence(), raw, size=size) == [GET, HEAD_OF_POST + BODY, GET, b""]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_all_bytes_after_a_chunked_head_are_passed_on_and_no_request_follows(size: int) -> None:
    requests = sequence()
    raw = HEAD_OF_CHUNKED + b"0\r\n\r\n" + GET
    assert answered(requests, raw, size=size) == [raw]
    assert requests.is_last
    requests.end_response(keep_alive=True)
    assert requests.phase is Phase.ANSWERED_CHUNKS


@pytest.mark.parametrize("line", [b"Upgrade: websocket\r\n", b"UPGRADE:h2c\r\n"])
def test_no_request_follows_an_upgrade(line: bytes) -> None:
    requests = sequence()
    head = GET.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n")
    assert b"".join(requests.feed(head + GET)) == head
    requests.end_response(keep_alive=True)
    assert requests.phase is Phase.CLOSED
    assert list(requests.feed(GET)) == []


def test_no_request_follows_a_response_that_closes() -> None:
    requests = sequence()
    assert list(requests.feed(GET + GET)) == [GET]
    requests.end_response(keep_alive=False)
    assert list(requests.feed(b"")) == []


def test_the_rest_of_a_body_is_passed_on_after_its_response() -> None:
    for keep_alive, more in ((True, GET), (False, b"")):
        requests = sequence()
        assert b"".join(requests.feed(HEAD_OF_POST + BODY[:2])) == HEAD_OF_POST + BODY[:2]
        requests.end_response(keep_alive=keep_alive)
        assert b"".join(requests.feed(BODY[2:] + GET)) == BODY[2:] + more


def test_it_is_full_when_more_waits_than_a_head_may_have() -> None:
    requests = sequence(head_bytes=100)
    assert list(requests.feed(GET + GET)) == [GET]
    assert not requests.is_full
    assert list(requests.feed(GET * 4)) == []
    assert requests.is_full


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"GET /" + b"a" * 40 + b" HTTP/1.1\r\n\r\n", Reason.HEADERS_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 50 + b"\r\n\r\n", Reason.HEADERS_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A:\r\n" * 4 + b"\r\n", Reason.HEADERS_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: aaaaaaaaaaaaaaaa\r\n" * 10, Reason.HEADERS_TOO_LARGE),
    ],
    ids=["request line", "header", "headers", "head"],
)
def test_a_head_that_is_too_large_is_refused(raw: bytes, reason: Reason, size: int) -> None:
    requests = sequence(request_line_bytes=40, header_bytes=40, headers=3, head_bytes=100)
    with pytest.raises(MalformedHead) as refused:
        answered(requests, raw, size=size)
    assert refused.value.reason is reason


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"/" * 40,
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n A: b\r\n\r\n",
        *[b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n" for lines in BROKEN_LINES],
        *[b"\r\n".join([b"POST / HTTP/1.1", b"Host: a", *fields, b"", b""]) for fields in AMBIGUOUS],
    ],
)
def test_bytes_that_do_not_form_a_head_are_refused(raw: bytes, size: int) -> None:
    with pytest.raises(MalformedHead) as refused:
        answered(sequence(), raw, size=size)
    assert refused.value.reason is Reason.BAD_REQUEST


def test_a_large_head_that_arrives_byte_by_byte_costs_no_more_than_its_length() -> None:
    """Each byte is searched once: 64 KiB are done at once, where searching all of it each time would take minutes."""
    requests = sequence(request_line_bytes=65_536)
    for number in range(65_000):
        assert list(requests.feed(b"G" if number < 3 else b" " if number == 3 else b"a")) == []
